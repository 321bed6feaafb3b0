"""What a request must keep to before the engine takes it: the model's vocabulary and its longest sequence."""

from __future__ import annotations

from dataclasses import dataclass

from lorafleet_serving.engine.request import GenerationRequest
from lorafleet_serving.exceptions import InvalidRequest


@dataclass(frozen=True)
class RequestCheck:
    """Limits of one engine."""

    vocab_size: int
    max_model_len: int
    """Longest sequence, prompt and answer together, in tokens."""

    def check(self, request: GenerationRequest) -> None:
        """Check a request by itself.

        Raises:
            InvalidRequest: it cannot be computed by this model.
        """
        prompt, sampling = request.prompt_token_ids, request.sampling
        if not prompt:
            raise InvalidRequest("the prompt has no tokens", field="prompt_token_ids")
        if min(prompt) < 0 or max(prompt) >= self.vocab_size:
            raise InvalidRequest(f"token ids must be from 0 to {self.vocab_size - 1}", field="prompt_token_ids")
        for field, named in (("logit_bias", [i for i, _ in sampling.logit_bias]), ("stop", sampling.stop_token_ids)):
            if any(not 0 <= token_id < self.vocab_size for token_id in named):
                raise InvalidRequest(f"{field} names a token id above {self.vocab_size - 1} or below 0", field=field)
        self._check_length(request)

    def _check_length(self, request: GenerationRequest) -> None:
        num_prompt = len(request.prompt_token_ids)
        if request.pooling is not None:
            if num_prompt > self.max_model_len:
                raise InvalidRequest(
                    f"the prompt has {num_prompt} tokens, it may have {self.max_model_len}: shorten it",
                    field="prompt_token_ids",
                )
        elif num_prompt + request.sampling.max_new_tokens > self.max_model_len:
            raise InvalidRequest(
                f"the prompt has {num_prompt} tokens and max_new_tokens is {request.sampling.max_new_tokens}, "
                f"together they may be {self.max_model_len}: shorten the prompt or ask for fewer tokens",
                field="max_new_tokens",
            )
