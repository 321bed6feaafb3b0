"""The front's side of the engine process: requests as streams, loads as futures, crashes as errors.

Everything here runs on the front's event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from lorafleet_serving.child import ChildProcess
from lorafleet_serving.engine.config import EngineConfig
from lorafleet_serving.engine.messages import (
    Abort,
    AdapterLoaded,
    AdapterRefused,
    AdapterUnloaded,
    EngineEvent,
    EngineFailed,
    EngineReady,
    EngineStats,
    Generate,
    LoadAdapter,
    Shutdown,
    Tokens,
    UnloadAdapter,
)
from lorafleet_serving.engine.process import engine_main
from lorafleet_serving.engine.request import GenerationRequest, Tenant
from lorafleet_serving.engine.token_stream import TokenStream
from lorafleet_serving.engine.waiting_limits import WaitingLimits
from lorafleet_serving.exceptions import AnswerLost, PodUnavailable

_logger = logging.getLogger(__name__)


def _nothing() -> None:
    """Nobody asks to be told."""


class EngineHandle:
    """Speaks with the engine process and keeps it alive.

    `on_ready` is called when the engine takes requests, `on_down` when it died, `on_failure` with the
    reason when the base model cannot be served at all.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        limits: WaitingLimits,
        silence_limit_s: float,
        on_ready: Callable[[], None],
        on_down: Callable[[], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._max_num_seqs = config.max_num_seqs
        self._limits = limits
        self._on_ready = on_ready
        self._on_down = on_down
        self._on_failure = on_failure
        self._child = ChildProcess(
            "engine",
            engine_main,
            config,
            silence_limit_s=silence_limit_s,
            on_event=self._receive,
            on_exit=self._died,
        )
        self._streams: dict[str, TokenStream] = {}
        self._waiting: dict[str, Tenant] = {}
        """Whose requests count as waiting, by id."""
        self._loads: dict[str, asyncio.Future[int]] = {}
        self._ready = asyncio.Event()
        self.loaded: dict[str, int] = {}
        """Bytes of the adapters that the engine holds in host memory, by digest."""
        self.facts: EngineReady | None = None
        """What the engine said of itself when it last became ready; kept while it restarts."""
        self.stats: EngineStats | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the engine takes requests."""
        return self._ready.is_set()

    @property
    def is_alive(self) -> bool:
        """Whether the process runs, be it only loading."""
        return self._child.pid is not None

    @property
    def num_in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    @property
    def num_waiting(self) -> int:
        """Requests that have no token yet."""
        return sum(not stream.started for stream in self._streams.values())

    @property
    def has_place(self) -> bool:
        """Whether one more sequence would find a place in the batch."""
        return len(self._streams) < self._max_num_seqs

    def start(self) -> None:
        """Spawn the process."""
        self._child.start()

    async def stop(self) -> None:
        """End the process."""
        self._ready.clear()
        await self._child.stop(Shutdown())

    async def wait_ready(self) -> None:
        """Wait until the engine takes requests."""
        await self._ready.wait()

    def submit(
        self, request: GenerationRequest, *, limited: bool = True, on_end: Callable[[], None] = _nothing
    ) -> TokenStream:
        """Send a request. `limited` says whether it may be turned away because others wait.

        `on_end` is called when the engine has computed the last of it, read or not, or has died.

        Raises:
            PodUnavailable: the engine is down.
            QueueFull: as many requests as may wait are waiting, of all or of its tenant.
        """
        if not self.is_ready:
            raise PodUnavailable("the engine is starting: try again in a few seconds")
        if limited:
            self._limits.enter(request.tenant)
            self._waiting[request.request_id] = request.tenant
        stream = TokenStream(request.request_id, on_end=on_end, on_close=self._finish)
        self._streams[request.request_id] = stream
        self._child.send(Generate(request))
        return stream

    async def load(self, digest: str, folder: str) -> int:
        """Bring an adapter into the engine's host memory; returns its size there in bytes.

        Raises:
            AdapterRefusal: the engine does not serve such an adapter.
            NoRoom: other adapters fill the host tier.
            PodUnavailable: the engine is down, or died meanwhile.
        """
        if not self.is_ready:
            raise PodUnavailable("the engine is starting")
        if digest in self.loaded:
            return self.loaded[digest]
        future = self._loads.get(digest)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            self._loads[digest] = future
            self._child.send(LoadAdapter(digest, folder))
        return await asyncio.shield(future)

    def unload(self, digest: str) -> None:
        """Let the engine drop an adapter that it holds, once no request uses it."""
        del self.loaded[digest]
        self._child.send(UnloadAdapter(digest))

    def _receive(self, event: EngineEvent) -> None:
        match event:
            case Tokens():
                self._feed(event)
            case EngineStats():
                self.stats = event
            case AdapterLoaded(digest, num_bytes):
                self.loaded[digest] = num_bytes
                self._loads.pop(digest).set_result(num_bytes)
            case AdapterRefused(digest, error):
                self._loads.pop(digest).set_exception(error)
            case AdapterUnloaded():
                pass  # `unload` has forgotten it already, so that nothing is sent to it meanwhile.
            case EngineReady():
                self.facts = event
                self._ready.set()
                self._on_ready()
            case EngineFailed(reason):
                self._child.retire()  # Another one would fail as well.
                self._on_failure(reason)

    def _feed(self, tokens: Tokens) -> None:
        for part in tokens.prompt_parts:
            if stream := self._streams.get(part.request_id):
                stream.feed_prompt(part.scores)
        for output in tokens.outputs:
            if stream := self._streams.get(output.request_id):
                self._leave_queue(stream)
                stream.feed(output)

    def _died(self) -> None:
        self._ready.clear()
        self.loaded.clear()
        self.stats = None
        error = AnswerLost("the engine process ended and is started again: try again in a few seconds")
        for stream in list(self._streams.values()):
            self._leave_queue(stream)
            stream.fail(error)
        for future in self._loads.values():
            future.set_exception(error)
            future.exception()  # Retrieved here, since the one who asked may have been cancelled.
        self._loads.clear()
        self._on_down()

    def _finish(self, stream: TokenStream) -> None:
        self._streams.pop(stream.request_id, None)
        self._leave_queue(stream)
        if not stream.ended:
            self._child.send(Abort(stream.request_id))

    def _leave_queue(self, stream: TokenStream) -> None:
        tenant = self._waiting.pop(stream.request_id, None)
        if tenant is not None:
            self._limits.leave(tenant)
