"""The serving pod as a component."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lorafleet_pipeline.stack.component import ComponentPlan, http_probe
from lorafleet_pipeline.stack.environment import clean_environment
from lorafleet_pipeline.stack.ports import LOOPBACK

# Running requests get this long to end, within the limit of the pod's own end.
_DRAIN_LIMIT_S = 10.0


@dataclass(frozen=True)
class Pod:
    """Settings of the pod. `environment` holds the registry, the read-only keys and the shared secrets."""

    folder: Path
    port: int
    model: str
    model_folder: Path
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def url(self) -> str:
        """The pod's address."""
        return f"http://{LOOPBACK}:{self.port}"

    def command(self) -> tuple[str, ...]:
        """The command line that starts the pod."""
        return (
            *(sys.executable, "-m", "lorafleet_serving"),
            *("--host", LOOPBACK, "--port", str(self.port)),
            *("--model", str(self.model_folder), "--served-name", self.model),
            *("--cache-dir", str(self.folder / "cache")),
        )

    def plan(self) -> ComponentPlan:
        """The component. Its preparation converts or fetches the base model, which is quick once it was done."""
        return ComponentPlan(
            name="pod",
            command=self.command(),
            environment={"LORAFLEET_DRAIN_LIMIT_S": str(_DRAIN_LIMIT_S), **clean_environment(self.environment)},
            folder=self.folder,
            log=self.log,
            probe=http_probe(f"{self.url}/ready"),
            url=self.url,
            prepare=(sys.executable, "-m", "lorafleet_pipeline.base_models", self.model),
            prepare_title=f"preparing the base model {self.model}",
            stop_limit_s=_DRAIN_LIMIT_S + 10.0,
        )
