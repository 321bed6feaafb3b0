"""What adapters are merged into one, and how. Its digest is the identity of the result. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from lorafleet_contract.digest import document_digest


class MergeStrategy(StrEnum):
    """How tensors of several adapters become one; PEFT's names (`add_weighted_adapter`)."""

    LINEAR = "linear"
    """The weighted sum."""
    TIES = "ties"
    """Yadav et al. 2023: trimmed by magnitude, then merged where signs agree with the elected one."""
    DARE_LINEAR = "dare_linear"
    """Yu et al. 2023: dropped at random and rescaled, then summed."""
    DARE_TIES = "dare_ties"
    """Dropped at random and rescaled, then merged as ties does."""


class MajoritySign(StrEnum):
    """How the sign of an element is elected."""

    TOTAL = "total"
    """By the sum of the values."""
    FREQUENCY = "frequency"
    """By the number of members on either side."""


@dataclass(frozen=True)
class MergeMember:
    """One adapter and its weight."""

    digest: str
    weight: float


@dataclass(frozen=True)
class MergeRecipe:
    """One merge."""

    members: tuple[MergeMember, ...]
    strategy: MergeStrategy = MergeStrategy.LINEAR
    density: float = 1.0
    """Share of a tensor's elements that is kept; `linear` keeps all."""
    majority_sign: MajoritySign = MajoritySign.TOTAL
    seed: int = 0
    """Of what is dropped at random."""

    @property
    def digest(self) -> str:
        """Digest over the members' digests and the settings."""
        return document_digest(
            {
                "merge": str(self.strategy),
                "members": [[member.digest, member.weight] for member in self.members],
                "density": self.density,
                "majority_sign": str(self.majority_sign),
                "seed": self.seed,
            }
        )
