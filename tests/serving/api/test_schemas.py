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


@pytest.mark.parametrize("field", ["logit_bias", "metadata"])
def test_a_long_mapping_of_wrong_items_is_one_error_that_tells_their_number(field: str) -> None:
    with pytest.raises(ValidationError, match=r"1000 items are more than the [13]00 that may be given") as caught:
        ChatRequest.model_validate({field: {f"?{number}": [] for number in range(1000)}})
    (error,) = [error for error in caught.value.errors() if error["loc"][0] == field]
    assert error["loc"] == (field,)
