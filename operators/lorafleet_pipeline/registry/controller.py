"""The controller: the one writer of `live`, `previous`, mirrored stages, `serve.*` tags and the audit log.

It runs in exactly one place: inside the MLflow server, where every change is announced to it at once, or
as a process of its own beside a managed server, where it looks every few seconds. What it does is the
same: look at the registry, decide, write. All of it can be repeated at any time.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterable
from itertools import zip_longest
from typing import NamedTuple

from lorafleet_contract.aliases import STAGE_ALIASES
from lorafleet_contract.exceptions import RegistryError, RegistryNotFound, RegistryUnavailable
from lorafleet_contract.mirror import FULL_LOOK_EVERY, RegistryMirror
from lorafleet_contract.names import is_adapter_name
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.registry.actor import controller_registry
from lorafleet_pipeline.registry.audit import AuditLog
from lorafleet_pipeline.registry.audit_writer import AuditWriter
from lorafleet_pipeline.registry.canary import SetModelTag
from lorafleet_pipeline.registry.change import AliasChange, Change, StageChange
from lorafleet_pipeline.registry.decision import Decision, SetAlias, SetStage, SetTag, decide, is_explained
from lorafleet_pipeline.registry.inbox import Inbox, Post
from lorafleet_pipeline.registry.observed import Observed
from lorafleet_pipeline.registry.pods import Pods
from lorafleet_pipeline.registry.snapshot import AdapterSnapshot, snapshot_of, snapshots_of
from lorafleet_pipeline.registry.sole_instance import sole_instance
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.storage import Storage

_logger = logging.getLogger(__name__)

_JITTER = 0.2
_STOP_CHECK_S = 0.2
_DOUBT_S = 1.0
"""How long after the last announcement an unexplained difference may wait for the one that explains it."""
_LONGEST_DOUBT_S = 10.0
_DOUBT_CHECK_S = 0.02
_PODS_FIRST_S = 0.15
"""How long the controller lets pods read what alias was moved before it reads and writes itself: whoever moved it
waits for the pods, and MLflow answers one call at a time."""
_RETRY_S = 0.5
_PATIENCE_S = 5.0
"""How long the registry may be away before it is worth a line in the log."""

LOCK_FILE = "controller.lock"
DEFAULT_INTERVAL_S = 2.0


class _Retry(NamedTuple):
    """When an adapter is looked at again that could not be brought in order."""

    due: float
    pause_s: float
    is_refused: bool
    """Whether the registry has refused it, and said so in the log; else a look did not get to it."""


class Controller:
    """One loop over the registry. `announced` says whether changes are announced to it as they are made."""

    def __init__(
        self,
        settings: PlatformSettings,
        *,
        interval_s: float,
        announced: bool,
    ) -> None:
        self._client = controller_registry(settings)
        self._mirror = RegistryMirror(self._client, interval_s * FULL_LOOK_EVERY)
        self._audit = AuditWriter(AuditLog(Storage(settings.audit_s3 or settings.s3), settings.audit_url))
        self._lock_path = settings.home / LOCK_FILE
        self._interval_s = interval_s
        self._announced = announced
        self._inbox = Inbox()
        self._pods = Pods(settings, self._inbox.look)
        self._memory: dict[tuple[str, int], Observed] = {}
        """What was observed of an adapter, by its name and the time it was made."""
        self._unremembered: dict[str, Observed] = {}
        """What the registry is to remember once the journal is written."""
        self._changes: dict[str, list[Change]] = {}
        self._doubts: dict[str, tuple[float, float]] = {}
        """Adapters that differ without an explanation yet: since when, and when something was last heard of them."""
        self._failed: dict[str, _Retry] = {}
        self._leads = threading.Event()
        self._away_since: float | None = None
        self._told_away = False

    def announce(self, name: str, change: Change | None) -> None:
        """Take note of a change that was just made; None where only the adapter is known. Any thread."""
        if not is_adapter_name(name):
            return  # Somebody else's model.
        # A stage means nothing to pods until it is mapped to an alias, but for one that withdraws or restores.
        if not (isinstance(change, StageChange) and change.stage in STAGE_ALIASES):
            self._pods.nudge(name)
        # Who waits for another to end must not keep what that other has seen to: it would be made again, long after.
        if self._leads.is_set():
            self._inbox.announce(name, change)

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop; of several processes with one home, all but one wait."""
        with sole_instance(self._lock_path, stop) as alone:
            if alone:
                self._leads.set()
                self._run(stop)
            else:
                self.close()

    def _run(self, stop: threading.Event) -> None:
        self._pods.start()
        self._audit.start()
        due = time.monotonic()
        try:
            while not stop.is_set():
                names = self._next(due - time.monotonic())
                if time.monotonic() >= due:
                    names = None
                if names is None or names:
                    self._try(names)
                if names is None:
                    pause_s = self._interval_s * random.uniform(1 - _JITTER, 1 + _JITTER)
                    due = time.monotonic() + (pause_s if self._away_since is None else min(pause_s, _RETRY_S))
        finally:
            self.close()
            self._remember_written()

    def close(self) -> None:
        """Stop watching the pods and writing the audit log."""
        self._pods.stop()
        self._audit.stop()

    def run_once(self) -> int:
        """Ask the pods, look at every adapter and write the audit log; returns the number of writes made."""
        self._pods.ask()
        self._next(0.0)
        writes = self._look(None)
        self._audit.flush()
        return writes + self._look(None)

    def _next(self, limit_s: float) -> frozenset[str] | None:
        """Adapters to look at now; None for all, empty for none."""
        if self._doubts:
            limit_s = min(limit_s, _DOUBT_CHECK_S)
        post = self._take(max(0.0, min(limit_s, _STOP_CHECK_S)))
        if any(isinstance(change, AliasChange) for _, change in post.changes):
            time.sleep(_PODS_FIRST_S)
        if post.names is None:
            return None
        now = time.monotonic()
        return post.names | self._doubts.keys() | {name for name, retry in self._failed.items() if now >= retry.due}

    def _take(self, limit_s: float) -> Post:
        """Empty the inbox, and keep the changes that were announced."""
        post = self._inbox.take(limit_s)
        for name, change in post.changes:
            self._changes.setdefault(name, []).append(change)
            if name in self._doubts:
                self._doubts[name] = (self._doubts[name][0], time.monotonic())
        return post

    def _try(self, names: frozenset[str] | None) -> None:
        try:
            self._look(names)
        except RegistryError as error:
            # Away, or its credentials are wrong: both end without our doing.
            self._retry(names or ())
            self._note_absence(str(error))
            time.sleep(_DOUBT_CHECK_S)
        except Exception:  # The loop must outlive any one failure: nobody else moves `live`.
            _logger.exception("the controller could not complete a look at the registry")
            self._retry(names or ())
            time.sleep(_RETRY_S)
        else:
            if self._told_away:
                _logger.info("the registry answers again")
            self._away_since, self._told_away = None, False

    def _note_absence(self, reason: str) -> None:
        now = time.monotonic()
        self._away_since = self._away_since or now
        # Inside the MLflow server the controller is up first, and waits a moment as a matter of course.
        if now - self._away_since > _PATIENCE_S and not self._told_away:
            _logger.warning("the controller waits: %s", reason)
            self._told_away = True

    def _look(self, names: Iterable[str] | None) -> int:
        if names is None:
            return sum(self._settle(snapshot) for snapshot in snapshots_of(self._mirror.look()))
        writes = 0
        for name in sorted(names):
            snapshot = self._read(name)
            if snapshot is not None:
                writes += self._settle(snapshot)
            else:
                self._forget(name)
        return writes

    def _read(self, name: str) -> AdapterSnapshot | None:
        # The model first: an alias of a version registered in between is then seen at the next look.
        if self._mirror.read_model(name, with_aliased=True) is not None:  # It may be a tag that was announced.
            self._mirror.read_changes(name)
            self._mirror.read_versions(name, self._changed(name))
        return snapshot_of(self._mirror.get(name))

    def _changed(self, name: str) -> set[int]:
        """Versions whose stage was announced to have changed, those archived or deleted among them."""
        found = self._mirror.get(name)
        held = {} if found is None else found.versions
        changes = [change for change in self._changes.get(name, ()) if not isinstance(change, AliasChange)]
        left = {item.stage for item in changes if isinstance(item, StageChange) and item.archive_existing}
        return {change.version for change in changes} | {item.version for item in held.values() if item.stage in left}

    def _settle(self, snapshot: AdapterSnapshot) -> int:
        """Bring one adapter in order; returns the number of writes made."""
        name = snapshot.name
        observed = self._memory.get((name, snapshot.created_at), snapshot.observed)
        explained = self._explanation(snapshot, observed)
        if explained is None:
            return 0
        snapshot, changes = explained
        decision = decide(snapshot, observed, self._pods.states, changes, now=time.time())
        earlier = self._failed.get(name)
        try:
            self._carry_out(name, decision, announced=bool(changes))
            self._forget(name)
            self._memory[name, snapshot.created_at] = decision.observed
            return len(decision.actions) + self._remember(snapshot, decision)
        except RegistryUnavailable:
            raise
        except RegistryError as error:
            # One adapter that the registry refuses must not keep the others waiting.
            pause_s = _DOUBT_CHECK_S
            if earlier is not None and earlier.is_refused:
                pause_s = min(2 * earlier.pause_s, self._interval_s)  # It may last, so it is tried less and less often.
            else:
                _logger.error("%s could not be brought in order: %s", name, error)
            self._failed[name] = _Retry(time.monotonic() + pause_s, pause_s, is_refused=True)
            return 0

    def _retry(self, names: Iterable[str]) -> None:
        """Look again at names that a look did not get to."""
        for name in names:
            self._failed.setdefault(name, _Retry(time.monotonic(), _DOUBT_CHECK_S, is_refused=False))

    def _explanation(
        self, snapshot: AdapterSnapshot, observed: Observed | None
    ) -> tuple[AdapterSnapshot, tuple[Change, ...]] | None:
        """The adapter as the announced changes have left it, and these changes; None while more may come.

        What was made while the registry was read is announced by now, and some of it was made too late to be seen.
        Without it an adapter that is moved all the time, faster than it is looked at, would never be explained.
        """
        name = snapshot.name
        known = self._changes.get(name, [])
        if not self._announced or is_explained(snapshot, observed, known):
            return snapshot, tuple(known)
        num_known = len(known)
        post = self._take(0.0)
        if post.names is None or post.names:
            self._inbox.look(post.names)  # They are still to be looked at.
        known = self._changes.get(name, [])
        for count in range(num_known + 1, len(known) + 1):
            if is_explained(snapshot, observed, known[:count]) and (latest := snapshot.after(known[count:])):
                return latest, tuple(known)
        return None if self._may_be_explained(name) else (snapshot, tuple(known))

    def _may_be_explained(self, name: str) -> bool:
        """Whether the announcement of what was seen may still be on its way."""
        now = time.monotonic()
        first, last = self._doubts.setdefault(name, (now, now))
        return now < last + _DOUBT_S and now < first + _LONGEST_DOUBT_S

    def _carry_out(self, name: str, decision: Decision, *, announced: bool) -> None:
        if decision.entries and not announced:
            self._pods.nudge(name)
        moves = [action for action in decision.actions if isinstance(action, SetAlias | SetStage)]
        for action, following in zip_longest(moves, moves[1:]):
            self._apply(name, action)
            # Pods follow aliases, and a stage may bring a withdrawn version back; tags are for people.
            if following is None or (isinstance(action, SetAlias) and not isinstance(following, SetAlias)):
                self._pods.nudge(name)
        shares = [action for action in decision.actions if isinstance(action, SetModelTag)]
        for share in shares:
            self._apply_to_model(name, share)
        if shares:
            self._pods.nudge(name)
        for tag in decision.actions:
            if isinstance(tag, SetTag):
                self._apply(name, tag)

    def _apply_to_model(self, name: str, action: SetModelTag) -> None:
        if action.value is None:
            self._client.delete_model_tag(name, action.key)
        else:
            self._client.set_model_tag(name, action.key, action.value)

    def _apply(self, name: str, action: SetAlias | SetStage | SetTag) -> None:
        try:
            match action:
                case SetAlias(alias=alias, version=None):
                    self._client.delete_alias(name, alias)
                case SetAlias(alias=alias, version=int(version)):
                    self._client.set_alias(name, alias, version)
                case SetStage(version=version, stage=stage):
                    self._mirror.note_version(self._client.transition_stage(name, version, stage))
                case SetTag(version=version, key=key, value=None):
                    self._client.delete_version_tag(name, version, key)
                    self._mirror.note_tag(name, version, key, None)
                case SetTag(version=version, key=key, value=str(value)):
                    self._client.set_version_tag(name, version, key, value)
                    self._mirror.note_tag(name, version, key, value)
        except RegistryNotFound as error:
            _logger.info("%s of %s came too late: %s", action, name, error)
            if action.version is not None:
                self._mirror.read_versions(name, {action.version})  # Deleted since the look.

    def _remember(self, snapshot: AdapterSnapshot, decision: Decision) -> int:
        """Keep the journal, and after it what was observed: a crash in between repeats, and loses nothing."""
        name = snapshot.name
        for entry in decision.entries:
            by = f" by {entry.who}" if entry.who else ""
            _logger.info("%s: %s %s -> %s (%s%s)", name, entry.what, entry.before, entry.after, entry.how, by)
        if decision.entries:
            self._audit.add(decision.entries, lambda adapter: self._inbox.look({adapter}))
        self._unremembered.pop(name, None)
        if self._audit.is_pending(name):
            self._unremembered[name] = decision.observed
            return 0
        if snapshot.observed == decision.observed:
            return 0
        self._client.set_model_tag(name, Tag.CONTROLLER_OBSERVED, decision.observed.to_tag())
        return 1

    def _remember_written(self) -> None:
        """At an end, remember what the journal has taken, so that the next start does not journal it again.

        Nothing is decided any more: nobody would journal it.
        """
        for name, observed in self._unremembered.items():
            if self._audit.is_pending(name):
                continue
            try:
                self._client.set_model_tag(name, Tag.CONTROLLER_OBSERVED, observed.to_tag())
            except RegistryError as error:
                _logger.warning("the last changes of %s will be journaled twice: %s", name, error)

    def _forget(self, name: str) -> None:
        self._failed.pop(name, None)
        self._unremembered.pop(name, None)
        self._changes.pop(name, None)
        self._doubts.pop(name, None)
        self._memory = {key: observed for key, observed in self._memory.items() if key[0] != name}


def run(settings: PlatformSettings, stop: threading.Event, *, interval_s: float = DEFAULT_INTERVAL_S) -> None:
    """Run the controller beside a managed MLflow, where it finds changes by looking, until told to stop."""
    Controller(settings, interval_s=interval_s, announced=False).run(stop)
