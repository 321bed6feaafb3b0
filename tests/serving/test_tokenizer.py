"""The text of single tokens: as it stands inside a text, whatever the tokenizer does at a text's start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorafleet_serving.tokenizer import PodTokenizer
from tests.serving.tiny_model import make_blank_tokenizer, make_tiny_tokenizer


@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (make_blank_tokenizer, {"▁is": " is", "is": "is", "▁": " ", "<0x61>": "a", "<0xE2>": "\ufffd", "</s>": ""}),
        (make_tiny_tokenizer, {"Ġthe": " the", "the": "the", "Ġ": " ", "<end>": ""}),
    ],
    ids=["blanks", "bytes"],
)
def test_a_token_keeps_its_blank(make: Any, texts: dict[str, str], tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    tokenizer = PodTokenizer(tmp_path)
    ids = make().convert_tokens_to_ids(list(texts))
    assert {name: tokenizer.decode_token(token_id) for name, token_id in zip(texts, ids, strict=True)} == texts
