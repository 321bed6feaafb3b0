"""Making sure of a promotion: every pod serves the champion, and it answers. If not, the way back.

Level-triggered: what counts is the champion now, not the one that an event named. So several events in one run,
an event told twice, or a champion that moved on meanwhile all lead to the same end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from lorafleet_airflow.exceptions import PromotionFaulty, PromotionUnconfirmed
from lorafleet_airflow.fleet import SETTLED, Champion, Finding, Standing, champion_of, find
from lorafleet_airflow.hooks.pod import state_of
from lorafleet_contract.aliases import Alias, Stage
from lorafleet_contract.manifest import MANIFEST_FILE, AdapterManifest
from lorafleet_contract.registry import RegistryClient
from lorafleet_contract.states import GateStatus, ServeState
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.registry.snapshot import AdapterSnapshot, VersionSnapshot, read_aliased
from lorafleet_pipeline.storage import Storage

if TYPE_CHECKING:
    from lorafleet_serving.client import PodClient

_SMOKE_TOKENS = 8
_SMOKE_PROMPT = "Hello"
_STALE_S = 3.0
"""How long a refusal may be an old one, which the pod is about to reconsider."""

_BUSY = frozenset({408, 429, 502, 503, 504, 507})
"""Answers of a pod that say nothing about the adapter."""

_NO_FAULT = frozenset({Standing.SILENT, Standing.HINDERED})
"""Standings that say nothing about the version."""


class Outcome(StrEnum):
    """How the look at one adapter ended."""

    CONFIRMED = "confirmed"
    NO_CHAMPION = "no champion"
    NO_POD = "no pod serves its base"


@dataclass(frozen=True)
class Confirmation:
    """What was found about one adapter."""

    adapter: str
    outcome: Outcome
    version: int | None = None
    digest: str | None = None
    pods: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The confirmation as a JSON object."""
        return {**asdict(self), "outcome": self.outcome.value, "pods": list(self.pods)}


class Confirmer:
    """Confirms champions of one registry on a set of pods."""

    def __init__(
        self,
        registry: RegistryClient,
        storage: Storage,
        pods: Sequence[PodClient],
        *,
        log: Any,
        wait_s: float = 120.0,
        poll_s: float = 0.5,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._storage = storage
        self._pods = pods
        self._log = log
        self._wait_s = wait_s
        self._poll_s = poll_s
        self._sleep = sleep
        self._clock = clock

    def confirm(self, adapter: str) -> Confirmation:
        """Wait until every pod serves the champion, then let each answer once.

        Raises:
            PromotionFaulty: the version was refused, was not taken in time, or does not answer.
            PromotionUnconfirmed: a pod is away, or cannot take it now for a reason that is not the version's.
        """
        began = self._clock()
        champion = self._wait_served(adapter, began)
        if champion is None:
            return Confirmation(adapter, Outcome.NO_CHAMPION)
        pods = [pod for pod in self._pods if find(champion, state_of(pod)).standing is not Standing.FOREIGN]
        if not pods:
            return Confirmation(adapter, Outcome.NO_POD, champion.version.version, champion.version.digest)
        for pod in pods:
            self._smoke(champion, pod)
        return Confirmation(
            adapter=adapter,
            outcome=Outcome.CONFIRMED,
            version=champion.version.version,
            digest=champion.version.digest,
            pods=tuple(pod.url for pod in pods),
            seconds=round(self._clock() - began, 3),
        )

    def _wait_served(self, adapter: str, began: float) -> Champion | None:
        told: set[str] = set()
        while True:
            snapshot = read_aliased(self._registry, adapter)
            champion = None if snapshot is None else champion_of(snapshot)
            if champion is None:
                return None
            findings = [find(champion, state_of(pod)) for pod in self._pods]
            open_ones = [item for item in findings if item.standing not in SETTLED]
            if not open_ones:
                return champion
            for line in {str(item) for item in open_ones} - told:
                self._log.info("Waiting: %s", line)
                told.add(line)
            waited_s = self._clock() - began
            if waited_s >= _STALE_S:
                _raise_refusals(open_ones)
            if waited_s >= self._wait_s:
                raise _timeout(open_ones, self._wait_s)
            self._sleep(self._poll_s)

    def _smoke(self, champion: Champion, pod: PodClient) -> None:
        from lorafleet_serving.client import PodError, PodUnreachable

        name, version = champion.name, champion.version
        # By alias, not by bare name: a canary must not answer in the champion's place.
        model = f"{name}@{Alias.CHAMPION}"
        try:
            answer = pod.complete(model, **self._question(champion), max_tokens=_SMOKE_TOKENS)
        except PodUnreachable as error:
            raise PromotionUnconfirmed(f"{name} version {version.version}: {error}") from error
        except PodError as error:
            message = f"{name} version {version.version} did not answer its smoke request: {error}"
            if error.status in _BUSY:
                raise PromotionUnconfirmed(message) from error
            raise PromotionFaulty(message, version=version.version) from error
        if answer.digest != version.digest:
            raise PromotionUnconfirmed(
                f"{name}: {pod.url} answered by {answer.adapter or 'the base'} ({answer.digest}), not by version "
                f"{version.version} ({version.digest}): the champion moved meanwhile, or the pod mixes versions"
            )
        self._log.info("%s answers with version %d: %r", pod.url, version.version, answer.text)

    def _question(self, champion: Champion) -> dict[str, Any]:
        """An example of the version's own, where its manifest carries one."""
        address = self._registry.get_artifact_address(champion.name, champion.version.version)
        document = json.loads(self._storage.read_bytes(f"{address.rstrip('/')}/{MANIFEST_FILE}"))
        examples = AdapterManifest.from_json(document).prompt.examples
        return {"variables": examples[0]} if examples else {"prompt": _SMOKE_PROMPT}


def roll_back(registry: RegistryClient, adapter: str, faulty: int) -> int | None:
    """Move the champion back from a faulty version; the version it went to, or None where there is no way back.

    To `live` where the pods never took the faulty version, else to `previous`. A champion that moved on meanwhile is
    left alone.
    """
    snapshot = read_aliased(registry, adapter)
    if snapshot is None or snapshot.aliases.get(Alias.CHAMPION) != faulty:
        return None
    target = _way_back(snapshot, faulty)
    if target is not None:
        registry.set_alias(adapter, Alias.CHAMPION, target)
    return target


def _way_back(snapshot: AdapterSnapshot, faulty: int) -> int | None:
    live, previous = snapshot.aliases.get(Alias.LIVE), snapshot.aliases.get(Alias.PREVIOUS)
    if live is not None and live != faulty:
        return live if _is_servable(snapshot.versions[live]) else None
    # Two faulty versions must not send the champion to and fro for ever: only to an older one, that pods could load.
    if previous is None or previous >= faulty or not _is_servable(snapshot.versions[previous]):
        return None
    state = snapshot.versions[previous].tags.get(Tag.SERVE_STATE)
    return previous if state in (None, ServeState.READY) else None


def _is_servable(version: VersionSnapshot) -> bool:
    gate = version.tags.get(Tag.GATE_STATUS)
    return version.stage is not Stage.ARCHIVED and gate in (GateStatus.PASSED, GateStatus.WAIVED)


def _raise_refusals(findings: Sequence[Finding]) -> None:
    refused = [str(item) for item in findings if item.standing is Standing.REFUSED]
    if refused:
        raise PromotionFaulty("; ".join(refused), version=findings[0].version)


def _timeout(findings: Sequence[Finding], wait_s: float) -> PromotionUnconfirmed:
    message = f"not served after {wait_s:g} s: " + "; ".join(str(item) for item in findings)
    # A pod that is away, or reports an outage, says nothing about the version; one that just has not taken it does.
    if all(item.standing in _NO_FAULT for item in findings):
        return PromotionUnconfirmed(f"{message}; the champion stays, and pods go on trying")
    return PromotionFaulty(message, version=findings[0].version)
