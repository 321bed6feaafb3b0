"""Request bodies of the OpenAI dialect."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lorafleet_serving.api.chat_schemas import ChatRequest


@pytest.mark.parametrize("field", ["messages", "modalities", "stop_token_ids", "tools"])
def test_a_long_list_of_wrong_items_is_one_error(field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate({field: ["?"] * 100})
    assert caught.value.error_count() == 1
