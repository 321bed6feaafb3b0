"""The tokens of one request on their way through the front."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from lorafleet_serving.engine.request import FinishReason, TokenOutput
from lorafleet_serving.engine.scored_prompt import ScoredPrompt
from lorafleet_serving.exceptions import DeadlineExceeded, GenerationFailed, InvalidRequest, ServingError

_FRUITLESS = (None, FinishReason.ABORTED, FinishReason.ERROR, FinishReason.EXPIRED)
"""Ends of a request that say nothing of what was computed for it."""


class TokenStream:
    """The tokens of one request, as they come. Must be closed; closing early aborts the request."""

    def __init__(self, request_id: str, *, on_end: Callable[[], None], on_close: Callable[[TokenStream], None]) -> None:
        self.request_id = request_id
        self.started = False
        """Whether the engine has answered anything."""
        self.ended = False
        self.num_tokens = 0
        """Tokens that the engine has computed, read or not."""
        self.was_computed = False
        """Whether the prompt was."""
        self._on_end = on_end
        self._on_close = on_close
        self._prompt: ScoredPrompt | None = None
        """What has come of the prompt's scores, before the first output."""
        self._arrived: asyncio.Queue[TokenOutput | Exception] = asyncio.Queue()

    def feed(self, output: TokenOutput) -> None:
        """Add what a step produced."""
        if self._prompt is not None and isinstance(output.prompt, ScoredPrompt):
            self.feed_prompt(output.prompt)
            output, self._prompt = replace(output, prompt=self._prompt), None
        self.started = True
        self.num_tokens += output.token_id is not None
        self.was_computed = self.was_computed or output.token_id is not None or output.finish_reason not in _FRUITLESS
        self._arrived.put_nowait(output)
        if output.finish_reason is not None:
            self._end()

    def feed_prompt(self, part: ScoredPrompt) -> None:
        """Add what a step read of the prompt; it is given with the first output."""
        if self._prompt is None:
            self._prompt = ScoredPrompt()
        self._prompt.extend(part)

    def fail(self, error: Exception) -> None:
        """End the stream with an error."""
        self.started = True
        self._arrived.put_nowait(error)
        self._end()

    def close(self) -> None:
        """Give up the request, if it has not ended."""
        self._on_close(self)

    def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self._on_end()

    async def __aiter__(self) -> AsyncIterator[TokenOutput]:
        """Every output up to the one with a finish reason.

        Raises:
            PodUnavailable: the engine died.
            GenerationFailed: the engine gave up on the request.
            DeadlineExceeded: the request's time was over.
            InvalidRequest: it cannot be computed as it is, which was seen on the way alone.
        """
        while True:
            item = await self._arrived.get()
            if isinstance(item, Exception):
                raise item
            if item.finish_reason in (FinishReason.ERROR, FinishReason.EXPIRED):
                raise _failure(item)
            yield item
            if item.finish_reason is not None:
                return


def _failure(output: TokenOutput) -> ServingError:
    reason = output.error or "the engine gave no reason"
    if output.finish_reason is FinishReason.EXPIRED:
        return DeadlineExceeded(f"{reason}: allow it more time, or ask for fewer tokens")
    if output.error_field is not None:
        return InvalidRequest(reason, field=output.error_field)
    return GenerationFailed(reason)
