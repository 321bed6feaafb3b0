"""Signing of gate reports. Registry tags can be edited by anyone; a signed report cannot.

HMAC-SHA256 over the canonical JSON of the report without its `signature` field, with a key that
the pipeline and the pods share.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from lorafleet_contract.digest import canonical_json
from lorafleet_contract.exceptions import SignatureInvalid


def sign(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the document with its `signature` field set."""
    return {**_unsigned(document), "signature": _signature(document, key)}


def verify(document: Mapping[str, Any], key: str) -> None:
    """Check a document's `signature` field.

    Raises:
        SignatureInvalid: it is missing, or was not made over this content with this key.
    """
    given = document.get("signature")
    if not isinstance(given, str):
        raise SignatureInvalid("the gate report is not signed: evaluate the version again to sign it")
    try:
        expected = _signature(document, key)
    except (ValueError, RecursionError) as error:
        raise SignatureInvalid(f"the gate report holds what nobody signs ({error}): evaluate again") from error
    if not hmac.compare_digest(given.encode(errors="replace"), expected.encode()):
        raise SignatureInvalid(
            "the signature of the gate report does not match: it was edited, or signed with another key "
            "(LORAFLEET_GATE_KEY must be the same for pipeline and pod)"
        )


def _unsigned(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != "signature"}


def _signature(document: Mapping[str, Any], key: str) -> str:
    return "hmac-sha256:" + hmac.new(key.encode(), canonical_json(_unsigned(document)), hashlib.sha256).hexdigest()
