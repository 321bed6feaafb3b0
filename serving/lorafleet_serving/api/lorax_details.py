"""Tokens and details of an answer as the LoRAX dialect writes them.

Log-probabilities are the model's own: before penalties, temperature and filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorafleet_serving.api.answer import WholeAnswer
from lorafleet_serving.detokenizer import token_texts
from lorafleet_serving.engine.request import FinishReason, SamplingParams, ScoredToken
from lorafleet_serving.generation import Piece
from lorafleet_serving.tokenizer import PodTokenizer

Json = dict[str, Any]

# A format that is fulfilled ends the answer as the end token would.
_FINISH_REASONS = {
    FinishReason.EOS: "eos_token",
    FinishReason.COMPLETE: "eos_token",
    FinishReason.LENGTH: "length",
}


class DetailsWriter:
    """Writes with the tokens of one model."""

    def __init__(self, tokenizer: PodTokenizer) -> None:
        self._tokenizer = tokenizer

    def token(self, piece: Piece) -> Json:
        """One generated token."""
        output = piece.output
        # The end token is no part of the engine's answer, but this dialect shows one.
        token_id = output.token_id if output.token_id is not None else self._tokenizer.eos_token_id
        token: Json = {
            "id": token_id,
            "text": piece.token_text,
            "logprob": output.logprob if output.logprob is not None else 0.0,
            "special": output.token_id is None or self._tokenizer.is_special(output.token_id),
            "skipped": False,
        }
        if output.alternatives:
            token["alternative_tokens"] = [
                {"id": item.token_id, "text": self._tokenizer.decode_token(item.token_id), "logprob": item.logprob}
                for item in output.alternatives
            ]
        return token

    def ending(self, reason: FinishReason, num_prompt: int, num_tokens: int, sampling: SamplingParams) -> Json:
        """What is known at the end of an answer."""
        return {
            "finish_reason": _FINISH_REASONS.get(reason, "stop_sequence"),
            "prompt_tokens": num_prompt,
            "generated_tokens": num_tokens,
            "seed": sampling.seed if sampling.temperature > 0.0 else None,
        }

    def whole(
        self, answer: WholeAnswer, prompt: Sequence[int], sampling: SamplingParams, prefill: Sequence[Json] = ()
    ) -> Json:
        """Everything about a finished answer."""
        return {
            **self.ending(answer.finish_reason, len(prompt), len(answer.pieces), sampling),
            "skipped_tokens": 0,
            "prefill": list(prefill),
            "tokens": [self.token(piece) for piece in answer.pieces],
        }

    def prefill(self, prompt: Sequence[int], scores: Sequence[ScoredToken]) -> list[Json]:
        """The prompt's tokens; empty if they were not scored."""
        if not scores:
            return []
        return [
            {"id": token_id, "text": text, "logprob": score.logprob}
            for token_id, text, score in zip(prompt, token_texts(self._tokenizer, prompt), scores, strict=True)
        ]


def likeliest(answers: Sequence[WholeAnswer]) -> int:
    """Index of the answer whose tokens have the highest mean log-probability."""
    return max(range(len(answers)), key=lambda index: answers[index].mean_logprob)
