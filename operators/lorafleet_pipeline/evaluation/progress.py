"""Progress of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self


class Contestant(StrEnum):
    """Whose answers are compared."""

    BASE = "base"
    CANDIDATE = "candidate"
    CHAMPION = "champion"


@dataclass(frozen=True)
class EvaluationProgress:
    """Answers so far of one contestant; before the first one answers, the engine loads."""

    contestant: Contestant | None
    done: int
    total: int

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read a report back."""
        contestant = data["contestant"]
        return cls(**{**data, "contestant": None if contestant is None else Contestant(contestant)})

    def __str__(self) -> str:
        if self.contestant is None:
            return "loading the base model"
        return f"{self.contestant.value} {self.done}/{self.total} answers"


OnProgress = Callable[[EvaluationProgress], None]
