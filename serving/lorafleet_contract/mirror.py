"""A copy of the registry, kept up by reading what changed.

MLflow takes milliseconds for each version that a search returns, so that reading every version at every look
would keep it busy with a few hundred of them. The time of a version's last change tells which to read again: it
moves when a version is made and when its stage does. Tags and deletions do not move it. Therefore a version is
read anew when an alias comes to it or leaves it, whoever needs a tag at once names the version, and everything is
read again from time to time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from lorafleet_contract.exceptions import RegistryNotFound
from lorafleet_contract.registry import ModelVersion, RegisteredModel, RegistryClient

FULL_LOOK_EVERY = 15
"""Looks of a follower after which one reads everything again."""
_OVERLAP_MS = 10_000
"""How far behind a change that was seen a later one may be dated: it may be committed late, or by a server whose clock
is behind."""
_FULL_LOOK_SHARE = 0.05
"""Largest share of the time that reading everything may take."""
_JITTER = 0.2
"""Share of the time until everything is read again by which mirrors that began together drift apart."""


@dataclass(frozen=True)
class MirroredModel:
    """A registered model with its versions by number."""

    model: RegisteredModel
    versions: Mapping[int, ModelVersion]


class RegistryMirror:
    """The registry's models and versions as they were last read. For one thread.

    `full_interval_s` is the time after which a look reads every version again, tags and deletions included; it grows
    where that takes long. Every method that reads raises `RegistryError` as the client does, and then leaves what was
    known before.
    """

    def __init__(self, client: RegistryClient, full_interval_s: float = 60.0) -> None:
        self._client = client
        self._full_interval_s = full_interval_s
        self._full_due = time.monotonic()
        self._models: dict[str, RegisteredModel] = {}
        self._versions: dict[str, dict[int, ModelVersion]] = {}
        self._newest = 0
        """Time of the latest change that a look at everything has seen, by the registry's clock (unix ms)."""
        self._newest_seen = time.monotonic()

    def look(self) -> list[MirroredModel]:
        """Every model, with what changed since the last look."""
        # Models first: a version registered between the two calls is then seen, and its alias next time.
        models = {model.name: model for model in self._client.search_models()}
        if time.monotonic() >= self._full_due or self._has_remade(models):
            self._read_everything()
        else:
            for model in models.values():
                self.read_versions(model.name, self._realiased(model))
        for model in models.values():
            # Where versions are deleted between two pages of a search, others are on neither.
            self.read_versions(model.name, set(model.aliases.values()) - self._versions.get(model.name, {}).keys())
        # What changed comes last and in one answer: of a promotion that archives another version, no look may see the
        # one half only, and take it for a withdrawal.
        self._note_newest(self.read_changes())
        self._models = models
        self._versions = {name: held for name, held in self._versions.items() if name in models}
        return [MirroredModel(model, dict(self._versions.get(name, {}))) for name, model in models.items()]

    def get(self, name: str) -> MirroredModel | None:
        """A model as it was last read; None where there is none."""
        model = self._models.get(name)
        return None if model is None else MirroredModel(model, dict(self._versions.get(name, {})))

    def read_model(self, name: str, *, with_aliased: bool = False) -> RegisteredModel | None:
        """Read a model's aliases and tags, and the versions that aliases came to or left; None where there is none.

        `with_aliased` reads every version that an alias names, or did.
        """
        try:
            model = self._client.get_model(name)
        except RegistryNotFound:
            self._models.pop(name, None)
            self._versions.pop(name, None)
            return None
        is_remade = self._has_remade({name: model})
        before = model if is_remade else self._models.get(name, model)
        aliased = {*before.aliases.values(), *model.aliases.values()}
        found = self._fetch(name, aliased if with_aliased or is_remade else self._realiased(model))
        if is_remade:
            self._versions.pop(name, None)
        self._note(name, found)
        self._models[name] = model
        return model

    def read_changes(self, name: str | None = None) -> int:
        """Read versions of one model or of all that changed of late; returns the time of the latest change (ms)."""
        overlap_ms = max(0, _OVERLAP_MS - round((time.monotonic() - self._newest_seen) * 1000))
        found = self._client.search_changed_versions(self._newest - overlap_ms + 1, name)
        self._keep(found)
        return max((item.updated_at for item in found), default=0)

    def read_versions(self, name: str, numbers: Iterable[int]) -> None:
        """Read some versions of a model, tags included; those that are deleted are forgotten."""
        self._note(name, self._fetch(name, numbers))

    def note_version(self, item: ModelVersion) -> None:
        """Take note of a version as the registry gave it to the owner of this mirror."""
        self._keep([item])

    def note_tag(self, name: str, number: int, key: str, value: str | None) -> None:
        """Take note of a tag that the owner of this mirror just set, or removed where `value` is None."""
        item = self._versions.get(name, {}).get(number)
        if item is not None:
            others = {known: held for known, held in item.tags.items() if known != key}
            self._keep([replace(item, tags=others if value is None else {**others, key: value})])

    def _fetch(self, name: str, numbers: Iterable[int]) -> dict[int, ModelVersion | None]:
        found: dict[int, ModelVersion | None] = {}
        for number in sorted(numbers):
            try:
                found[number] = self._client.get_version(name, number)
            except RegistryNotFound:
                found[number] = None
        return found

    def _note(self, name: str, found: Mapping[int, ModelVersion | None]) -> None:
        self._keep(item for item in found.values() if item is not None)
        for number, item in found.items():
            if item is None:
                self._versions.get(name, {}).pop(number, None)

    def _read_everything(self) -> None:
        began = time.monotonic()
        self._full_due = began + self._full_interval_s  # Should it fail, the next look is at what changed.
        found = self._client.search_versions()
        self._versions = {}
        self._keep(found)
        self._note_newest(max((item.updated_at for item in found), default=0))
        ended = time.monotonic()
        pause_s = max(self._full_interval_s, (ended - began) / _FULL_LOOK_SHARE)
        self._full_due = ended + pause_s * random.uniform(1 - _JITTER, 1 + _JITTER)

    def _note_newest(self, newest: int) -> None:
        # A version that is dated ahead must not hide what changes from now on.
        newest = min(newest, round(time.time() * 1000))
        if newest > self._newest:
            self._newest, self._newest_seen = newest, time.monotonic()

    def _keep(self, found: Iterable[ModelVersion]) -> None:
        for item in found:
            self._versions.setdefault(item.name, {})[item.version] = item

    def _realiased(self, model: RegisteredModel) -> set[int]:
        """Versions that an alias came to, or left: MLflow takes the aliases of a version that is deleted."""
        known = self._models.get(model.name)
        before = () if known is None else known.aliases.items()
        return {number for _, number in model.aliases.items() ^ set(before)}

    def _has_remade(self, models: Mapping[str, RegisteredModel]) -> bool:
        """Whether a model was deleted and another made by its name, whose versions bear the same numbers."""
        known = self._models
        return any(name in known and known[name].created_at != model.created_at for name, model in models.items())
