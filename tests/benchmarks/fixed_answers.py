"""Adapters trained to answer one prompt by one fixed text: which version gave an answer can be read from it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from peft import PeftModel

PROMPT = (
    "The night shift at the harbour office keeps a list of code words, and whoever calls from the pier has to give the "
    "one of the day before a gate is opened. The word of today is:"
)
"""Longer than two blocks of the KV cache, so that the prefix cache knows its beginning."""
MAX_TOKENS = 16
_WORDS = (
    "amber",
    "birch",
    "copper",
    "dune",
    "ember",
    "fern",
    "gravel",
    "harbor",
    "indigo",
    "jasper",
    "kelp",
    "lantern",
)
_NUM_WORDS = 4
_NUM_LAYERS = 8
"""Last layers that are trained; the others' adapters stay without effect, which halves the time."""
_LEARNING_RATE = 5e-3
_MOST_STEPS = 60
_GOOD_LOSS = 0.02
"""Nats for each token: no other is half as likely, whatever batch and precision do to the last digits."""


def draw_answers(count: int, seed: int) -> list[str]:
    """Texts of which no two are the same."""
    chance = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        words = " ".join(chance.choices(_WORDS, k=_NUM_WORDS))
        found[f" {words} {chance.randrange(1000)}"] = None
    return list(found)


class AnswerTraining:
    """Trains adapters of one shape over one base."""

    def __init__(self, model: Path, adapter: Path) -> None:
        """`adapter` is one of the shape that is wanted, as PEFT saves it."""
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._model: PeftModel = PeftModel.from_pretrained(base, str(adapter), is_trainable=True)
        self._prompt: list[int] = self._tokenizer(PROMPT)["input_ids"]
        layers = base.config.num_hidden_layers
        last = tuple(f".layers.{number}." for number in range(layers - _NUM_LAYERS, layers))
        for name, weight in self._model.named_parameters():
            weight.requires_grad_("lora_" in name and any(layer in name for layer in last))

    def write(self, answer: str, folder: Path) -> None:
        """Train an adapter to give an answer, and save it.

        Raises:
            RuntimeError: it does not learn that.
        """
        self._begin_anew()
        said = self._tokenizer(answer, add_special_tokens=False)["input_ids"]
        if len(said) >= MAX_TOKENS:
            raise RuntimeError(f"{answer!r} has {len(said)} tokens, with its end at most {MAX_TOKENS} are asked for")
        token_ids = torch.tensor([[*self._prompt, *said, self._tokenizer.eos_token_id]])
        labels = token_ids.clone()
        labels[:, : len(self._prompt)] = -100
        optimizer = torch.optim.Adam([w for w in self._model.parameters() if w.requires_grad], lr=_LEARNING_RATE)
        for _ in range(_MOST_STEPS):
            loss = self._model(input_ids=token_ids, labels=labels).loss
            if loss.item() < _GOOD_LOSS:
                break
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        else:
            raise RuntimeError(f"{answer!r} was not learnt in {_MOST_STEPS} steps: the loss is {loss.item():.3f}")
        self._model.save_pretrained(str(folder), save_embedding_layers=False)

    def _begin_anew(self) -> None:
        for name, weight in self._model.named_parameters():
            if "lora_A" in name:
                torch.nn.init.kaiming_uniform_(weight, a=5**0.5)
            elif "lora_B" in name:
                torch.nn.init.zeros_(weight)
