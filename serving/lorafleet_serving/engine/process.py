"""The engine process: takes commands from the pipe, steps the engine while there is work, posts tokens.

The main thread computes; another thread reads the pipe, so that the loop never waits for it, and ends
the process at once when the front is gone. A third reads adapters. A step that hangs, or an adapter that cannot be read
to its end, ends the process with every thread's stack in the log: the front starts another.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import queue
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from lorafleet_contract.openmp import wait_briefly
from lorafleet_serving.engine.config import EngineConfig
from lorafleet_serving.engine.messages import (
    Abort,
    AdapterUnloaded,
    EngineCommand,
    EngineFailed,
    EngineReady,
    Generate,
    LoadAdapter,
    Shutdown,
    Tokens,
    UnloadAdapter,
)
from lorafleet_serving.engine.request import FinishReason, TokenOutput
from lorafleet_serving.exceptions import InvalidRequest, ServingError
from lorafleet_serving.heap import freeze_heap
from lorafleet_serving.light_transformers import keep_torch_from_transformers

if TYPE_CHECKING:
    from lorafleet_serving.engine.engine import Engine
    from lorafleet_serving.engine.load_queue import LoadQueue, ReadEnded

_logger = logging.getLogger(__name__)

_STATS_INTERVAL_S = 0.25
_LOOK_S = 1.0
"""How often an engine with nothing to compute looks whether an adapter is read too long."""
_ALARM_INTERVAL_S = 1.0
"""The alarm for a step that hangs is set anew so often at most: it costs a thread each time."""

Inbox = queue.SimpleQueue["EngineCommand | ReadEnded"]


class EngineLoop:
    """Feeds commands into an engine and its results into the pipe."""

    def __init__(self, engine: Engine, loads: LoadQueue, pipe: Connection, inbox: Inbox) -> None:
        self._engine = engine
        self._loads = loads
        self._pipe = pipe
        self._inbox = inbox
        self._next_stats = 0.0
        self._next_alarm = 0.0
        self._stopped = False

    def run(self) -> None:
        """Work until told to shut down."""
        self._post_ready()
        while not self._stopped:
            self._take_commands()
            self._check_read()
            self._set_alarm()
            if self._engine.has_unfinished():
                outputs, parts = self._engine.step(), self._engine.prompt_parts()
                if outputs or parts:
                    self._pipe.send(Tokens(tuple(outputs), tuple(parts)))
            self._post_stats()
        # The end of the process is no step, however long a busy machine takes for it.
        faulthandler.cancel_dump_traceback_later()

    def _take_commands(self) -> None:
        """Handle what has arrived; wait for something when there is nothing to compute."""
        if not self._engine.has_unfinished():
            self._post_stats(at_once=True)
            faulthandler.cancel_dump_traceback_later()
            with contextlib.suppress(queue.Empty):  # Nothing has come while an adapter was read.
                command = self._inbox.get(timeout=None if self._loads.reading_s is None else _LOOK_S)
                self._next_alarm = 0.0
                self._set_alarm()
                self._handle(command)
        while not self._stopped and not self._inbox.empty():
            self._handle(self._inbox.get())

    def _handle(self, command: EngineCommand | ReadEnded) -> None:
        match command:
            case Generate(request):
                try:
                    self._engine.add_request(request)
                except ServingError as error:
                    field = error.field if isinstance(error, InvalidRequest) else None
                    output = TokenOutput(
                        request.request_id, None, FinishReason.ERROR, error=str(error), error_field=field
                    )
                    self._pipe.send(Tokens((output,)))
            case Abort(request_id):
                self._engine.abort(request_id)
            case LoadAdapter(digest, folder):
                self._loads.add(digest, Path(folder))
            case UnloadAdapter(digest):
                self._engine.unload_adapter(digest)
                self._pipe.send(AdapterUnloaded(digest))
            case Shutdown():
                self._stopped = True
            case read:
                self._loads.take(read)

    def _check_read(self) -> None:
        """End the process when an adapter cannot be read to its end: the next would wait behind it for ever."""
        reading_s = self._loads.reading_s
        if reading_s is not None and reading_s > self._engine.config.step_limit_s:
            _logger.error("an adapter has been read for %.0f s and has no end: the engine starts again", reading_s)
            faulthandler.dump_traceback()
            os._exit(1)

    def _set_alarm(self) -> None:
        now = time.monotonic()
        if now >= self._next_alarm:
            self._next_alarm = now + _ALARM_INTERVAL_S
            faulthandler.dump_traceback_later(self._engine.config.step_limit_s, exit=True)

    def _post_ready(self) -> None:
        stats = self._engine.stats()
        ready = EngineReady(
            base_digest=self._engine.base_digest,
            num_kv_blocks=stats.num_kv_blocks,
            block_size=self._engine.config.block_size,
            max_model_len=self._engine.max_model_len,
            hidden_size=self._engine.hidden_size,
            item_bytes=self._engine.item_bytes,
        )
        self._pipe.send(ready)

    def _post_stats(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now >= self._next_stats:
            self._next_stats = now + _STATS_INTERVAL_S
            self._pipe.send(self._engine.stats())


def engine_main(pipe: Connection, config: EngineConfig) -> None:
    """Load the base model and serve it until the pipe closes or `Shutdown` comes."""
    wait_briefly()
    keep_torch_from_transformers()
    # The front imports this module only to name it: torch belongs into this process alone.
    from lorafleet_serving.engine.engine import Engine
    from lorafleet_serving.engine.load_queue import LoadQueue

    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, inbox), name="commands", daemon=True).start()
    try:
        engine = Engine(config)
        engine.rehearse()
        freeze_heap()
    except ServingError as error:
        pipe.send(EngineFailed(str(error)))
        return
    except Exception as error:
        # Whatever is wrong with the model's files, another process would meet it too: the front is told, and ends.
        _logger.exception("the engine cannot start")
        pipe.send(EngineFailed(f"the base model {config.model} cannot be loaded: {error!r}"))
        return
    try:
        loads = LoadQueue(engine.adapters, on_read=inbox.put, send=pipe.send)
        EngineLoop(engine, loads, pipe, inbox).run()
    except Exception:  # The state of the batch is unknown after an own bug: a fresh process is the only safe one.
        _logger.exception("the engine failed")
        os._exit(1)


def _receive(pipe: Connection, inbox: Inbox) -> None:
    while True:
        try:
            inbox.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(0)  # The front is gone; nobody waits for the running step.
