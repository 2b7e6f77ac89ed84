"""What every figure has in common."""

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KB, MIB = 1024, 2**20


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done for each figure, and where its files go."""

    folder: Path
    rounds: int = 10
    cold_requests: int = 80
    cost_rounds: int = 10
    loaded_rounds: int = 5
    large_seconds: int = 6
    entries: int = 1_000_000
    starts: int = 7
    pictures: int = 200


def quick_plan(folder: Path) -> Plan:
    return Plan(folder, 2, 10, 2, 1, 3, 50_000, 2, 32)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value.

    The target, if there is one, is its upper bound, or the lower one with `at_least`.
    """

    of: str  # a name in figures.ALL
    name: str
    value: float
    target: float | None
    unit: str = ""
    at_least: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_met(self) -> bool:
        if self.target is None:
            return True
        return self.value >= self.target if self.at_least else self.value <= self.target


def median(values: list[float]) -> float:
    return round(statistics.median(values), 3)
