"""What the controller last saw of one adapter, as a tag of its registered model.

Without it nobody could tell which changed last, the stage or the alias: MLflow gives alias moves no time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lorafleet_contract.aliases import Stage


@dataclass(frozen=True)
class Observed:
    """Aliases and stages after the last look, and how many changes were recorded until then."""

    serial: int = 0
    aliases: Mapping[str, int] = field(default_factory=dict)
    stages: Mapping[int, Stage] = field(default_factory=dict)
    """Stages other than `None`; within a stage, the version that entered it last stands last."""
    canary: str | None = None
    """What the tag `rollout.canary` said."""

    def to_tag(self) -> str:
        """The tag's value; short, since some databases end a tag at 5000 characters."""
        members = {stage: [number for number, held in self.stages.items() if held is stage] for stage in Stage}
        document = {
            "serial": self.serial,
            "aliases": dict(sorted(self.aliases.items())),
            "production": members[Stage.PRODUCTION],
            "staging": members[Stage.STAGING],
            "archived": _to_ranges(members[Stage.ARCHIVED]),
        }
        if self.canary is not None:
            document["canary"] = self.canary
        return json.dumps(document, separators=(",", ":"))

    @classmethod
    def from_tag(cls, text: str) -> Observed:
        """Read the tag's value.

        Raises:
            ValueError: it is not what the controller writes.
        """
        try:
            data = json.loads(text)
            stages = dict.fromkeys(_from_ranges(data["archived"]), Stage.ARCHIVED)
            stages |= {int(number): Stage.STAGING for number in data["staging"]}
            stages |= {int(number): Stage.PRODUCTION for number in data["production"]}
            aliases = {str(alias): int(number) for alias, number in data["aliases"].items()}
            canary = data.get("canary")
            return cls(int(data["serial"]), aliases, stages, None if canary is None else str(canary))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the tag lacks a field: {error!r}") from error


def _to_ranges(numbers: Iterable[int]) -> str:
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _from_ranges(text: str) -> list[int]:
    numbers: list[int] = []
    for span in filter(None, text.split(",")):
        first, _, last = span.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers
