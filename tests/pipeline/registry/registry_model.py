"""A registry and its pods as plain values, to play the controller's decisions against."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lorafleet_contract.aliases import Stage
from lorafleet_contract.fleet import AdapterReport, CanaryReport, PodReport, VersionReport
from lorafleet_contract.states import ServeState
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.registry.canary import SetModelTag
from lorafleet_pipeline.registry.change import Change, replay, world_of
from lorafleet_pipeline.registry.decision import Action, Decision, SetAlias, SetStage, SetTag, decide
from lorafleet_pipeline.registry.observed import Observed
from lorafleet_pipeline.registry.readiness import PodState
from lorafleet_pipeline.registry.snapshot import AdapterSnapshot, VersionSnapshot

NAME = "adapter"
BASE = "sha256:base"


def digest_of(version: int) -> str:
    return f"sha256:{version}"


@dataclass
class RegistryModel:
    """What the registry holds of one adapter, and what the controller remembers."""

    num_versions: int = 4
    snapshot: AdapterSnapshot = field(init=False)
    observed: Observed | None = None
    pods: list[PodState] = field(default_factory=list)
    clock: int = 0

    def __post_init__(self) -> None:
        tags = {
            number: {Tag.LORA_DIGEST.value: digest_of(number), Tag.LORA_BASE_DIGEST.value: BASE}
            for number in range(1, self.num_versions + 1)
        }
        versions = {number: VersionSnapshot(number, Stage.NONE, 0, held) for number, held in tags.items()}
        self.snapshot = AdapterSnapshot(NAME, {}, versions)

    def make(self, change: Change) -> None:
        """Change the registry, as someone else does."""
        self.clock += 1
        world = world_of(self.snapshot.aliases, self.snapshot.stages)
        replay(world, change)
        versions = {
            number: item
            if item.stage is world.stage(number) and number != getattr(change, "version", None)
            else replace(item, stage=world.stage(number), updated_at=self.clock)
            for number, item in self.snapshot.versions.items()
        }
        self.snapshot = replace(self.snapshot, aliases=dict(world.aliases), versions=versions)

    def control(self, *changes: Change) -> Decision:
        """Let the controller look once and carry out what it decides."""
        decision = decide(self.snapshot, self.observed, self.pods, changes, now=1000.0)
        for action in decision.actions:
            self.carry_out(action)
        self.observed = decision.observed
        return decision

    def report(
        self,
        serving: int | None,
        *states: tuple[int, ServeState],
        url: str = "pod",
        base: str = BASE,
        canary: CanaryReport | None = None,
    ) -> None:
        """Have a pod report."""
        versions = tuple(VersionReport(number, digest_of(number), state) for number, state in states)
        report = PodReport(url, "base", base, (AdapterReport(NAME, serving, versions, canary),))
        self.pods = [*(pod for pod in self.pods if pod.url != url), PodState(url, report)]

    def serve(self, version: int, url: str = "pod") -> None:
        """Have a pod report that it serves a version."""
        self.report(version, (version, ServeState.READY), url=url)

    @property
    def aliases(self) -> dict[str, int]:
        return dict(self.snapshot.aliases)

    @property
    def stages(self) -> dict[int, Stage]:
        return self.snapshot.stages

    def tag(self, version: int, key: Tag) -> str | None:
        return self.snapshot.versions[version].tags.get(key)

    def set_model_tag(self, key: Tag, value: str | None) -> None:
        """Set a tag of the registered model, or remove it."""
        tags = {name: held for name, held in self.snapshot.tags.items() if name != key}
        self.snapshot = replace(self.snapshot, tags=tags if value is None else {**tags, key: value})

    def model_tag(self, key: Tag) -> str | None:
        return self.snapshot.tags.get(key)

    def carry_out(self, action: Action) -> None:
        """Make one write of the controller."""
        aliases, versions = dict(self.snapshot.aliases), dict(self.snapshot.versions)
        match action:
            case SetModelTag(key=key, value=value):
                self.set_model_tag(key, value)
            case SetAlias(alias=alias, version=None):
                del aliases[alias]
            case SetAlias(alias=alias, version=int(version)):
                aliases[alias] = versions[version].version
            case SetStage(version=version, stage=stage):
                self.clock += 1
                versions[version] = replace(versions[version], stage=stage, updated_at=self.clock)
            case SetTag(version=version, key=key, value=value):
                tags = {name: held for name, held in versions[version].tags.items() if name != key}
                versions[version] = replace(versions[version], tags=tags if value is None else {**tags, key: value})
        self.snapshot = replace(self.snapshot, aliases=aliases, versions=versions)
