"""Answers of base, candidate and champion to the same prompts, by the engine that serves.

All get the same prompt tokens, stop strings and token limit, and answer greedily in the number format of the pod.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lorafleet_pipeline.datasets.dataset import Example
from lorafleet_pipeline.exceptions import EvaluationError
from lorafleet_pipeline.spec import EvaluationSection
from lorafleet_pipeline.training.data import encode_prompts
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.request import FinishReason, GenerationRequest, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnAnswered = Callable[[int], None]
"""Called with the number of prompts answered so far."""


def sample_examples(examples: Sequence[Example], limit: int | None, seed: int) -> tuple[Example, ...]:
    """A random sample in the order of the rows, the same for the same seed; not the first rows, which are often
    sorted."""
    if limit is None or len(examples) <= limit:
        return tuple(examples)
    chosen = sorted(random.Random(seed).sample(range(len(examples)), limit))
    return tuple(examples[index] for index in chosen)


class Harness:
    """Asks one engine on behalf of each contestant."""

    def __init__(
        self, engine: Engine, tokenizer: PreTrainedTokenizerBase, section: EvaluationSection, *, chat: bool
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._section = section
        self._chat = chat

    def that_fit(self, examples: Sequence[Example]) -> tuple[Example, ...]:
        """Examples whose prompt and answer fit into the model's context.

        Raises:
            EvaluationError: none does.
        """
        room = self._engine.max_model_len - self._section.max_new_tokens
        lengths = [len(ids) for ids in self._encode([example.prompt for example in examples])]
        kept = tuple(example for example, length in zip(examples, lengths, strict=True) if 0 < length <= room)
        if not kept:
            raise EvaluationError(
                f"no test prompt leaves room for evaluation.max_new_tokens {self._section.max_new_tokens} in a context "
                f"of {self._engine.max_model_len} tokens: lower it, or shorten the prompt"
            )
        return kept

    def answer(self, examples: Sequence[Example], adapter: str | None, on_answered: OnAnswered) -> list[str]:
        """Answers in the order of the examples; `adapter` is a digest that the engine has loaded.

        Raises:
            EvaluationError: the engine gave up on a prompt.
        """
        # The same prompt has the same greedy answer.
        prompts = list(dict.fromkeys(example.prompt for example in examples))
        sampling = SamplingParams(max_new_tokens=self._section.max_new_tokens)
        for number, ids in enumerate(self._encode(prompts)):
            self._engine.add_request(GenerationRequest(str(number), tuple(ids), sampling, adapter))
        answers = self._collect(len(prompts), on_answered)
        by_prompt = dict(zip(prompts, answers, strict=True))
        return [by_prompt[example.prompt] for example in examples]

    def _collect(self, num_prompts: int, on_answered: OnAnswered) -> list[str]:
        tokens: list[list[int]] = [[] for _ in range(num_prompts)]
        answers: dict[int, str] = {}
        while self._engine.has_unfinished():
            for output in self._engine.step():
                number = int(output.request_id)
                if output.finish_reason is FinishReason.ERROR:
                    raise EvaluationError(f"the engine gave up on a test prompt: {output.error}")
                if number in answers:
                    continue
                if output.token_id is not None:
                    tokens[number].append(output.token_id)
                text = self._tokenizer.decode(tokens[number], skip_special_tokens=True)
                answer, stopped = cut_at_stop(text, self._section.stop)
                if stopped and output.finish_reason is None:
                    self._engine.abort(output.request_id)
                if stopped or output.finish_reason is not None:
                    answers[number] = answer
                    on_answered(len(answers))
        return [answers[number] for number in range(num_prompts)]

    def _encode(self, prompts: Sequence[str]) -> list[list[int]]:
        return encode_prompts(self._tokenizer, prompts, chat=self._chat)


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string in it, and whether there was one."""
    found = [at for at in (text.find(marker) for marker in stop if marker) if at >= 0]
    return (text[: min(found)], True) if found else (text, False)
