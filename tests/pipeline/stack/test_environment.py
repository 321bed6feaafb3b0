"""The environment of the stack's processes, and of the command line's own."""

from __future__ import annotations

import urllib.request

import pytest

from lorafleet_pipeline.stack.environment import clean_environment, loopback_without_proxy


@pytest.mark.parametrize(
    ("given", "upper", "lower"),
    [
        ({}, "127.0.0.1,localhost", "127.0.0.1,localhost"),
        ({"no_proxy": "a.example"}, "a.example,127.0.0.1,localhost", "a.example,127.0.0.1,localhost"),
        ({"NO_PROXY": "a.example"}, "a.example,127.0.0.1,localhost", "a.example,127.0.0.1,localhost"),
        ({"NO_PROXY": "a", "no_proxy": "b, localhost"}, "a,127.0.0.1,localhost", "b,localhost,127.0.0.1"),
        ({"no_proxy": "*"}, "*", "*"),
    ],
)
def test_this_machine_joins_the_hosts_that_need_no_proxy(given: dict[str, str], upper: str, lower: str) -> None:
    completed = loopback_without_proxy(given)
    assert completed == {"NO_PROXY": upper, "no_proxy": lower}
    assert loopback_without_proxy(completed) == completed


def test_host_that_only_one_of_the_two_variables_names_is_still_reached_directly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    for name, value in clean_environment({}).items():
        if name.lower() == "no_proxy":
            monkeypatch.setenv(name, value)
    assert urllib.request.proxy_bypass("intranet.example")
    assert urllib.request.proxy_bypass("127.0.0.1")
