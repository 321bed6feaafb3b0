"""One running generation, as text: tokens from the engine, detokenized and screened for stop strings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass

from lorafleet_serving.detokenizer import Detokenizer, StopScreen
from lorafleet_serving.engine.request import FinishReason, TokenOutput
from lorafleet_serving.engine.token_stream import TokenStream
from lorafleet_serving.tokenizer import PodTokenizer


@dataclass(frozen=True)
class Piece:
    """What one token brought."""

    text: str
    """Text that may be shown now."""
    output: TokenOutput
    token_text: str = ""
    """Text of the token itself, before stop strings are taken out."""
    finish_reason: FinishReason | None = None


class Generation:
    """The answer to one request while it is made. Closing it early aborts it in the engine."""

    def __init__(
        self,
        stream: TokenStream,
        tokenizer: PodTokenizer,
        prompt: tuple[int, ...],
        stop: tuple[str, ...],
        resources: ExitStack,
    ) -> None:
        self._stream = stream
        self._text = Detokenizer(tokenizer, prompt)
        self._screen = StopScreen(stop)
        self._resources = resources
        self.num_tokens = 0
        """Tokens generated so far."""
        self.on_close: Callable[[Generation], None] | None = None

    def close(self) -> None:
        """Release everything the request holds; harmless when done twice."""
        self._resources.close()
        if self.on_close is not None:
            self.on_close(self)
            self.on_close = None

    def fail(self, error: Exception) -> None:
        """End the answer with an error, behind what is there of it."""
        self._stream.fail(error)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The answer piece by piece; the last one has a finish reason.

        Raises:
            PodUnavailable: the engine died.
            GenerationFailed: the engine gave up.
        """
        async for output in self._stream:
            piece = self._next(output)
            yield piece
            if piece.finish_reason is not None:
                return

    def _next(self, output: TokenOutput) -> Piece:
        token_text = ""
        if output.token_id is not None:
            self.num_tokens += 1
            token_text = self._text.add(output.token_id)
        finish = output.finish_reason
        if finish is not None:
            token_text += self._text.flush()
        shown, stopped = self._screen.add(token_text)
        if stopped:
            return Piece(shown, output, token_text, FinishReason.STOP)
        if finish is not None:
            shown += self._screen.flush()
        return Piece(shown, output, token_text, finish)
