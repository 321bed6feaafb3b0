"""What the demo shows at its end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """The same prompt answered by base and champion over REST."""

    prompt: str
    base: str
    champion: str


@dataclass(frozen=True)
class Address:
    """One web interface. `login` is what it asks for, if anything."""

    name: str
    url: str
    login: str | None = None


@dataclass(frozen=True)
class DemoResult:
    """Figures of the run, as MLflow holds them, with the registered version."""

    name: str
    metric: str
    base: float
    adapter: float
    lift: float
    interval: tuple[float, float]
    """Paired bootstrap interval of the lift, 95 %."""
    rows: int
    version: int
    digest: str
    uri: str
    seconds: float
    comparison: Comparison
    addresses: tuple[Address, ...]
    stack_kept: bool

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object; it holds no password."""
        document = asdict(self)
        document["addresses"] = {address.name: address.url for address in self.addresses}
        return document
