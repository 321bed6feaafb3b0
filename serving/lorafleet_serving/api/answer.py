"""An answer in the making: what a generation gives, piece by piece, timed and counted."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from lorafleet_serving.adapters.answer_watch import AnswerWatch
from lorafleet_serving.adapters.catalog import ServedAdapter
from lorafleet_serving.api.adapter_labels import BASE
from lorafleet_serving.api.metrics import PodMetrics
from lorafleet_serving.engine.request import FinishReason
from lorafleet_serving.exceptions import DeadlineExceeded, GenerationFailed, PodUnavailable
from lorafleet_serving.generation import Generation, Piece
from lorafleet_serving.pod import Pod

ADAPTER_HEADER = "x-lorafleet-adapter"
DIGEST_HEADER = "x-lorafleet-digest"


@dataclass
class Timing:
    """Where the time of an answer went."""

    validation_s: float
    """From the request to its start in the engine: encoding, and bringing its adapter."""
    queue_s: float = 0.0
    """Waiting in the engine."""
    first_token_s: float = 0.0
    """From the start to the first token."""
    total_s: float = 0.0
    """From the start to the last token."""


class Answer:
    """An answer in the making. Must be closed."""

    def __init__(
        self,
        generation: Generation,
        version: ServedAdapter | None,
        prompt: tuple[int, ...],
        asked_at: float,
        pod: Pod,
        metrics: PodMetrics,
        watches: Sequence[AnswerWatch] = (),
    ) -> None:
        self.prompt = prompt
        self.num_prompt = len(prompt)
        self.model = pod.config.base_id if version is None else version.name
        self.headers = {
            ADAPTER_HEADER: "" if version is None else version.label,
            DIGEST_HEADER: pod.base_digest if version is None else version.digest,
        }
        self._adapter = BASE if version is None else version.name
        self._generation = generation
        self._metrics = metrics
        self._watches = watches
        self._started_at = time.monotonic()
        self.num_cached = 0
        """Tokens of the prompt that came from the prefix cache; known with the first piece."""
        self.timing = Timing(validation_s=self._started_at - asked_at)
        self._is_closed = False

    @property
    def num_tokens(self) -> int:
        """Tokens generated so far."""
        return self._generation.num_tokens

    async def pieces(self) -> AsyncIterator[Piece]:
        """The answer piece by piece; the last one has a finish reason.

        Raises:
            PodUnavailable: the engine died.
            GenerationFailed: the engine gave up.
        """
        is_first = True
        async for piece in self._generated():
            elapsed_s = time.monotonic() - self._started_at
            for watch in self._watches:
                watch.piece(piece, elapsed_s)
            if is_first:
                self._metrics.first_token(self._adapter, self.timing.validation_s + elapsed_s)
                self.timing.first_token_s = elapsed_s
                self.timing.queue_s = piece.output.queue_s or 0.0
                self.num_cached = piece.output.num_cached or 0
                is_first = False
            if piece.finish_reason is not None:
                self._metrics.finished(self._adapter, self.timing.validation_s + elapsed_s, piece.finish_reason)
                self.timing.total_s = elapsed_s
            yield piece

    async def _generated(self) -> AsyncIterator[Piece]:
        try:
            async for piece in self._generation.pieces():
                yield piece
        except (GenerationFailed, PodUnavailable, DeadlineExceeded) as error:
            self._metrics.failed(self._adapter)
            for watch in self._watches if isinstance(error, GenerationFailed) else ():
                watch.failed(str(error))
            raise

    async def whole(self) -> WholeAnswer:
        """Wait for all of it."""
        pieces = [piece async for piece in self.pieces()]
        reason = pieces[-1].finish_reason
        assert reason is not None, "a generation ended without a reason"
        self.close()  # At once: after a stop string the engine would generate on while other answers are waited for.
        return WholeAnswer("".join(piece.text for piece in pieces), reason, self.num_tokens, tuple(pieces))

    def close(self) -> None:
        """Release what the answer holds; a generation that still runs is aborted."""
        if not self._is_closed:
            self._is_closed = True
            self._generation.close()
            self._metrics.closed(self._adapter, self.num_prompt, self.num_tokens)


@dataclass(frozen=True)
class WholeAnswer:
    """A finished answer."""

    text: str
    finish_reason: FinishReason
    num_tokens: int
    pieces: tuple[Piece, ...]

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of its tokens, where they were asked for."""
        return sum(piece.output.logprob or 0.0 for piece in self.pieces) / len(self.pieces)
