"""How one server's figure compares with another's, round by round. Measures nothing."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours over theirs, round by round, of one figure of a workload."""

    workload: str
    figure: str
    values: list[float]
    less_is_better: bool = False

    def line(self, ours: str, theirs: str) -> str:
        if not self.values:
            return f"{self.workload}: requests failed, no ratio"
        spread = f"{median(self.values):.2f} ({min(self.values):.2f}-{max(self.values):.2f})"
        return f"{self.workload}: {self.figure} of {ours} / {theirs}: {spread}"
