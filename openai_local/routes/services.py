"""What every endpoint is given. Nothing here is global: each application has its own."""

from __future__ import annotations

from dataclasses import dataclass

from openai_local.config import Settings
from openai_local.models.registry import Registry


@dataclass(frozen=True, slots=True)
class Services:
    """The application's models and settings."""

    registry: Registry
    settings: Settings
