"""How times are written for OpenAI's clients."""

from __future__ import annotations

import pytest

from lorafleet_serving.api.rate_headers import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.0001, "1ms"),
        (0.0199, "20ms"),
        (0.9995, "1s"),
        (1.0, "1s"),
        (8.64, "8.64s"),
        (59.9999, "1m0s"),
        (60.0, "1m0s"),
        (360.0, "6m0s"),
        (66.4, "1m6.4s"),
        (7200.0, "120m0s"),
        (99999.9991, "1666m40s"),
    ],
)
def test_a_time_is_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text
