"""The pod as a whole: its processes, its catalog, and the requests that run through it.

The composition root of the front process. Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lorafleet_contract.digest import base_digest
from lorafleet_contract.exceptions import InvalidName
from lorafleet_contract.names import AddressedAdapter, NamedAdapter, parse_reference
from lorafleet_serving.adapters.answer_watch import AnswerWatch
from lorafleet_serving.adapters.catalog import Catalog, CatalogVersion, ServedAdapter
from lorafleet_serving.adapters.disk_lock import DiskLock, lock_own_folder
from lorafleet_serving.adapters.eviction import EvictionOrder
from lorafleet_serving.adapters.handle import FetcherHandle
from lorafleet_serving.adapters.host import HostTier
from lorafleet_serving.adapters.merged import MergedAdapter
from lorafleet_serving.adapters.shadow_traffic import Ask
from lorafleet_serving.caller import Caller
from lorafleet_serving.config import PodConfig
from lorafleet_serving.constraint_check import ConstraintCheck
from lorafleet_serving.engine.handle import EngineHandle
from lorafleet_serving.engine.messages import EngineReady
from lorafleet_serving.engine.request import ANONYMOUS, GenerationRequest, Pooling, SamplingParams
from lorafleet_serving.engine.waiting_limits import WaitingLimits
from lorafleet_serving.exceptions import (
    AdapterNotReady,
    Forbidden,
    PodUnavailable,
    UnknownAdapter,
)
from lorafleet_serving.following import Following, PodParts
from lorafleet_serving.generation import Generation
from lorafleet_serving.in_flight import InFlight
from lorafleet_serving.key_file import KeyFile
from lorafleet_serving.light_transformers import keep_torch_from_transformers
from lorafleet_serving.quota import Reservation
from lorafleet_serving.tokenizer import PodTokenizer

_logger = logging.getLogger(__name__)

Part = TypeVar("Part")


class Pod:
    """One serving pod. Runs on the front's event loop; `on_failure` is told when it cannot go on at all."""

    def __init__(self, config: PodConfig, *, on_failure: Callable[[str], None]) -> None:
        self.config = config
        self.key_file = None if config.api_keys is None else KeyFile(config.api_keys)
        self.limits = WaitingLimits(
            config.max_waiting, [ANONYMOUS] if self.key_file is None else self.key_file.keys.tenants
        )
        self.base_digest = ""
        self.catalog = Catalog()
        self.engine = EngineHandle(
            config.engine,
            limits=self.limits,
            silence_limit_s=config.silence_limit_s,
            on_ready=self._note_progress,
            on_down=self._engine_down,
            on_failure=on_failure,
        )
        self.fetcher = FetcherHandle(config.fetcher, silence_limit_s=config.silence_limit_s)
        order = EvictionOrder(config.host_eviction)
        self.host = HostTier(self.engine, config.engine.adapter_host_bytes, order, room_limit_s=config.room_limit_s)
        self.following: Following | None = None
        """What follows the registry, where there is one, once the pod knows its base."""
        self.in_flight = InFlight()
        self._tokenizer: PodTokenizer | None = None
        self._constraints: ConstraintCheck | None = None
        self._following_keys: asyncio.Task[None] | None = None
        self._caught_up = False
        self._folder_lock: DiskLock | None = None
        """On what this pod keeps for itself, as long as it lives."""

    @property
    def tokenizer(self) -> PodTokenizer:
        """The base model's tokenizer.

        Raises:
            PodUnavailable: the pod is still starting.
        """
        return _once_started(self._tokenizer)

    @property
    def constraints(self) -> ConstraintCheck:
        """What turns bad constraints away.

        Raises:
            PodUnavailable: the pod is still starting.
        """
        return _once_started(self._constraints)

    @property
    def max_model_len(self) -> int:
        """Longest sequence, prompt and answer together.

        Raises:
            PodUnavailable: the engine has never been ready.
        """
        return self.facts.max_model_len

    @property
    def facts(self) -> EngineReady:
        """What the engine said of itself when it became ready.

        Raises:
            PodUnavailable: it has never been ready.
        """
        if self.engine.facts is None:
            raise PodUnavailable("the engine is starting: try again in a few seconds")
        return self.engine.facts

    @property
    def num_merged(self) -> int:
        """Merged adapters in the engine."""
        return 0 if self.following is None else self.following.merged.num_held

    @property
    def is_caught_up(self) -> bool:
        """Whether what the registry wanted has come to a first result, and the engine is up since."""
        self._note_progress()
        return self._caught_up

    @property
    def is_draining(self) -> bool:
        """Whether no more requests are taken."""
        return self.in_flight.is_draining

    @property
    def is_ready(self) -> bool:
        """Whether callers should be sent here."""
        return self.engine.is_ready and self.is_caught_up and not self.is_draining

    async def start(self) -> None:
        """Start the processes and begin to follow the registry. Returns before they are ready.

        Raises:
            InvalidSetting: the folder of the disk tier cannot be used.
            UnsupportedModel: the base model has no tokenizer that can be loaded.
        """
        if self.config.registry is not None:
            self._folder_lock = lock_own_folder(self.config.own_folder)
            self.fetcher.start()
        self.engine.start()
        self.base_digest, tokenizer = await asyncio.gather(
            asyncio.to_thread(base_digest, self.config.engine.model),
            asyncio.to_thread(_load_tokenizer, self.config.engine.model),
        )
        constraints = ConstraintCheck(tokenizer)
        await asyncio.to_thread(constraints.prepare)
        # Set last: with it the pod may be ready.
        self._constraints, self._tokenizer = constraints, tokenizer
        if self.key_file is not None:
            follow = self.key_file.follow(lambda keys: self.limits.share_among(keys.tenants))
            self._following_keys = asyncio.create_task(follow, name="api-keys")
        if self.config.registry is not None:
            parts = PodParts(self.config, self.catalog, self.engine, self.fetcher, self.host, self.limits)
            self.following = Following(
                self.config.registry, self.base_digest, tokenizer, parts, on_progress=self._note_progress
            )
            self.following.start()

    async def stop(self) -> None:
        """End the processes."""
        if self._following_keys is not None:
            self._following_keys.cancel()
        if self.following is not None:
            self.following.stop()
        await asyncio.gather(self.engine.stop(), self.fetcher.stop())
        if self._folder_lock is not None:
            self._folder_lock.close()

    async def drain(self) -> None:
        """Take no more requests and wait, within the limit, for those that are here."""
        if self.following is not None:
            self.following.comparisons.stop()
        await self.in_flight.drain(self.config.drain_limit_s)

    def nudge(self, name: str) -> None:
        """Look at one name of the registry at once."""
        if self.following is not None:
            self.following.nudge(name)

    def resolve(self, text: str, caller: Caller, *, joins_canary: bool = True) -> CatalogVersion | None:
        """What a request's `model` or `adapter_id` reaches now; None is the base model.

        `joins_canary` lets a challenger answer where one takes a share.

        Raises:
            UnknownAdapter, AdapterWithdrawn, AdapterNotReady: it cannot be served.
            Forbidden: the caller may not ask for it, or not name adapters so.
            PodUnavailable: the pod is not ready.
        """
        if text in ("", self.config.base_id):
            _check_may_ask(caller, self.config.base_id)
            return None
        try:
            reference = parse_reference(text)
        except InvalidName as error:
            raise UnknownAdapter(str(error)) from error
        if isinstance(reference, AddressedAdapter):
            raise Forbidden(f"{reference} is an address: register the adapter and ask it by name")
        _check_may_ask(caller, reference.name)
        if reference.version is not None and not caller.names_versions:
            raise Forbidden(
                f"{reference} names a version: that needs the admin token, or a key with the scope 'versions', "
                f"ask {reference.name!r} instead"
            )
        return self._resolve_named(reference, caller.goes_by if joins_canary else None)

    async def load(self, adapter: CatalogVersion | MergedAdapter, caller: Caller) -> None:
        """Have an adapter in the engine for a request that has a lease on its digest.

        Raises:
            ServingError: it is refused, no tier has room for it, or it cannot be had now.
        """
        assert self.following is not None, "an adapter was found without a registry"
        if isinstance(adapter, MergedAdapter):
            await self.following.merged.load(adapter, caller.tenant)
        else:
            await self.following.residency.load(adapter, caller.tenant)

    def watches(self, version: ServedAdapter | None, asked: str, ask: Ask) -> tuple[AnswerWatch, ...]:
        """What follows an answer of a version, because others are compared with it; see `Comparisons`."""
        return () if self.following is None else self.following.comparisons.watches(version, asked, ask)

    def begin(
        self,
        token_ids: tuple[int, ...],
        sampling: SamplingParams,
        stop: tuple[str, ...],
        version: ServedAdapter | None,
        pooling: Pooling | None,
        caller: Caller,
        reservation: Reservation,
    ) -> Generation:
        """Start to generate, or with `pooling` to make a vector. The answer must be closed, and so the reservation is.

        Raises:
            PodUnavailable: the engine is down, or the pod is.
            QueueFull: too many requests wait.
        """
        self.in_flight.check_open()
        digest = version.digest if version is not None else None
        if digest is not None and not self.host.holds(digest):
            # It was when it was found, and is held since; the engine died.
            raise PodUnavailable("the engine has started again and loads its adapters: try again in a few seconds")
        request = _request(token_ids, sampling, digest, pooling, caller)
        with contextlib.ExitStack() as resources:
            # Held until the last token is computed, and no longer, however slowly the caller reads.
            held = resources.enter_context(contextlib.ExitStack())
            if digest is not None:
                held.enter_context(self.host.lease(digest))
            held.callback(reservation.close)
            stream = self.engine.submit(request, on_end=held.close)
            if isinstance(version, CatalogVersion):
                version.asked_at = time.time()
            reservation.count = lambda: reservation.num_prompt * stream.was_computed + stream.num_tokens
            resources.callback(stream.close)
            generation = Generation(stream, self.tokenizer, token_ids, stop, resources.pop_all())
        self.in_flight.add(generation)
        return generation

    def _note_progress(self) -> None:
        """Once caught up the pod stays so, until the engine dies: a later promotion loads beside."""
        settled = self.config.registry is None or (self.following is not None and self.following.is_settled)
        # The engine may be ready before the front has read its tokenizer.
        if self.engine.is_ready and self._tokenizer is not None and settled:
            self._caught_up = True

    def _engine_down(self) -> None:
        self._caught_up = False
        lost = self.host.engine_down()
        if self.following is not None:
            self.following.bring_back(lost)

    def _resolve_named(self, reference: NamedAdapter, key: str | None) -> CatalogVersion:
        try:
            return self.catalog.resolve(reference, key)
        except (AdapterNotReady, UnknownAdapter) as error:
            has_looked = self.following is None or self.following.synced_at is not None
            if not self.is_ready or not has_looked:
                # What is missing may only not be there yet.
                raise PodUnavailable(f"the pod is starting ({error}): try again in a few seconds") from error
            raise


def _once_started(part: Part | None) -> Part:
    if part is None:
        raise PodUnavailable("the pod is starting: try again in a few seconds")
    return part


def _request(
    token_ids: tuple[int, ...], sampling: SamplingParams, digest: str | None, pooling: Pooling | None, caller: Caller
) -> GenerationRequest:
    return GenerationRequest(
        uuid.uuid4().hex,
        token_ids,
        sampling,
        digest,
        pooling=pooling,
        tenant=caller.tenant,
        priority=caller.priority,
        deadline=caller.deadline,
    )


def _check_may_ask(caller: Caller, model: str) -> None:
    if not caller.may_ask(model):
        raise Forbidden(f"this key may not ask for {model!r}, but for {', '.join(caller.models)}")


def _load_tokenizer(folder: Path) -> PodTokenizer:
    keep_torch_from_transformers()
    return PodTokenizer(folder)
