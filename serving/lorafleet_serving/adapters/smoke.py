"""The smoke test of a version: a few tokens through the real engine before any caller is sent to it."""

from __future__ import annotations

import uuid
from contextlib import closing

from lorafleet_contract.exceptions import InvalidTemplate
from lorafleet_contract.prompt import PromptBlock
from lorafleet_serving.engine.handle import EngineHandle
from lorafleet_serving.engine.request import PRIORITIES, GenerationRequest, SamplingParams
from lorafleet_serving.exceptions import AdapterRefusal, InvalidRequest
from lorafleet_serving.tokenizer import PodTokenizer

_MAX_PROMPT_LEN = 64
"""Enough to run every layer; a longer prompt would only delay the promotion."""
_PLAIN_PROMPT = "Hello"


class SmokeTest:
    """Asks a loaded adapter its own first example."""

    def __init__(self, engine: EngineHandle, tokenizer: PodTokenizer, num_tokens: int) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._num_tokens = num_tokens

    def encode(self, prompt: PromptBlock | None) -> tuple[int, ...]:
        """Tokens of the prompt block's first example, or of a plain word.

        Raises:
            AdapterRefusal: the template does not render its own example.
        """
        if prompt is None or not prompt.examples:
            return self._tokenizer.encode(_PLAIN_PROMPT)
        try:
            return self._tokenizer.encode_rendered(prompt.render(prompt.examples[0]), chat=prompt.chat)
        except (InvalidTemplate, InvalidRequest) as error:
            raise AdapterRefusal(f"the prompt block does not fit its own first example: {error}") from error

    async def run(self, digest: str, token_ids: tuple[int, ...]) -> None:
        """Generate with the adapter.

        Raises:
            GenerationFailed: the engine gave up.
            PodUnavailable: the engine died.
        """
        request = GenerationRequest(
            request_id=f"smoke-{uuid.uuid4().hex}",
            prompt_token_ids=token_ids[-_MAX_PROMPT_LEN:],
            sampling=SamplingParams(max_new_tokens=self._num_tokens, ignore_eos=True),
            adapter=digest,
            priority=PRIORITIES[-1],  # A promotion does not wait for a full batch to end.
        )
        with closing(self._engine.submit(request, limited=False)) as stream:
            async for _ in stream:
                pass
