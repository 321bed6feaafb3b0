from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from lorafleet_contract.exceptions import InvalidName
from lorafleet_contract.names import (
    MAX_NAME_LEN,
    AdapterReference,
    AddressedAdapter,
    NamedAdapter,
    check_adapter_name,
    parse_reference,
)

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("tickets", NamedAdapter("tickets")),
        ("tickets@champion", NamedAdapter("tickets", alias="champion")),
        ("tickets@live", NamedAdapter("tickets", alias="live")),
        ("tickets:12", NamedAdapter("tickets", version=12)),
        ("s3://bucket/a:b@c", AddressedAdapter("s3://bucket/a:b@c")),
        ("/srv/adapters/x", AddressedAdapter("/srv/adapters/x")),
    ],
)
def test_reference_is_parsed(text: str, reference: AdapterReference) -> None:
    assert parse_reference(text) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-a",
        "_a",
        "a b",
        "a.b",
        "a/b",
        "../a",
        "a@",
        "a@1x",
        "a@b:2",
        "a:",
        "a:0",
        "a:-1",
        "a:1.0",
        "a:" + "9" * 19,
        "a:" + "9" * 5000,
        "s3://bucket/" + "k" * 5000,
        "a:\u0661",
        "\u00e9",
        "a\n",
    ],
)
def test_malformed_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_reference(text)


def test_a_refusal_can_be_written_whatever_was_sent() -> None:
    for text in ("\ud800@!", "\ud800@champion", "a@\ud800", "a:\ud800", "\ud800:1", "\ud800", "\ud800" * 5000):
        with pytest.raises(InvalidName) as caught:
            parse_reference(text)
        assert str(caught.value).encode()


def test_name_has_a_longest_length_and_the_error_says_it() -> None:
    assert check_adapter_name("a" * MAX_NAME_LEN)
    with pytest.raises(InvalidName, match=f"has {MAX_NAME_LEN + 1} characters, the limit is {MAX_NAME_LEN}"):
        check_adapter_name("a" * (MAX_NAME_LEN + 1))


@settings(deadline=None)
@given(name=NAMES, version=st.integers(1, 10**6), alias=st.sampled_from(["live", "previous", "challenger", "x-1"]))
def test_written_reference_is_read_back(name: str, version: int, alias: str) -> None:
    for reference in (NamedAdapter(name), NamedAdapter(name, alias=alias), NamedAdapter(name, None, version)):
        assert parse_reference(str(reference)) == reference
