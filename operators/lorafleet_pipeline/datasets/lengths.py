"""Lengths of texts: in tokens of the base model where its tokenizer is on this machine, else estimated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorafleet_pipeline.exceptions import BaseModelUnavailable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHARS_PER_TOKEN = 4
"""Characters that count as one token where there is no tokenizer; about right for English."""
_TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class LengthMeter:
    """Measures texts in tokens, or in an estimate of them."""

    tokenizer: Tokenizer | None

    @classmethod
    def of(cls, base_model: str) -> LengthMeter:
        """The meter of a base model. No hub is asked for it: a missing tokenizer only makes it coarser."""
        folder = _local_folder(base_model)
        if folder is None or not (folder / _TOKENIZER_FILE).is_file():
            return cls(None)
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER_FILE))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return cls(tokenizer)

    @property
    def exact(self) -> bool:
        """Whether lengths are real tokens."""
        return self.tokenizer is not None

    def measure(self, texts: Sequence[str]) -> list[int]:
        """Length of each text."""
        if self.tokenizer is None:
            return [-(-len(text) // CHARS_PER_TOKEN) for text in texts]
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(item.ids) for item in encoded]


def _local_folder(base_model: str) -> Path | None:
    from lorafleet_pipeline.base_models import DEFAULT_BASE_MODEL, base_model_folder, resolve_base_model

    folder = base_model_folder(base_model)
    if folder.is_dir() or not (base_model == DEFAULT_BASE_MODEL or Path(base_model).expanduser().exists()):
        return folder
    try:
        return resolve_base_model(base_model)
    except BaseModelUnavailable:
        return None
