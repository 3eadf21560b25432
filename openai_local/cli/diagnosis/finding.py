"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "slow", "broken"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``advice`` says what to do about it, where it is not ok."""

    topic: str
    level: Level
    text: str
    advice: str = ""
