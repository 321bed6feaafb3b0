from __future__ import annotations

import json
from typing import Any

import pytest

from lorafleet_contract.exceptions import SignatureInvalid
from lorafleet_contract.signature import sign, verify

REPORT: dict[str, Any] = {"adapter": "tickets", "digest": "sha256:1", "status": "passed", "interval": [0.1, 0.2]}


def test_signed_report_verifies_after_a_trip_through_json() -> None:
    verify(json.loads(json.dumps(sign(REPORT, "key"), indent=2)), "key")


def test_signing_again_changes_nothing() -> None:
    assert sign(sign(REPORT, "key"), "key") == sign(REPORT, "key")


@pytest.mark.parametrize(
    "forged",
    [
        {"status": "waived"},
        {"digest": "sha256:2"},
        {"interval": [0.1, 0.3]},
        {"reason": "added"},
        {"signature": "hmac-sha256:" + "0" * 64},
        {"signature": ""},
        {"signature": "\u00e9"},
    ],
)
def test_edited_report_is_refused(forged: dict[str, Any]) -> None:
    with pytest.raises(SignatureInvalid, match="LORAFLEET_GATE_KEY"):
        verify(sign(REPORT, "key") | forged, "key")


def test_report_of_another_key_is_refused_and_no_key_is_shown() -> None:
    with pytest.raises(SignatureInvalid) as caught:
        verify(sign(REPORT, "first-key"), "second-key")
    assert "first-key" not in str(caught.value)
    assert "second-key" not in str(caught.value)


@pytest.mark.parametrize("signature", [None, 5, ["x"]])
def test_unsigned_report_says_what_to_do(signature: object) -> None:
    with pytest.raises(SignatureInvalid, match="is not signed: evaluate the version again"):
        verify({**REPORT, "signature": signature}, "key")
    with pytest.raises(SignatureInvalid, match="is not signed"):
        verify(REPORT, "key")
