"""Who changes the registry, and by which way: carried in request headers, kept in the audit log."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote, unquote

from lorafleet_contract.registry import RegistryClient
from lorafleet_pipeline.settings import PlatformSettings

USER_HEADER = "X-LoRAFleet-User"
AGENT_HEADER = "X-LoRAFleet-Agent"
CONTROLLER_AGENT = "controller"
"""Agent of the controller's own calls, which it must not take for changes made by others."""


class How(StrEnum):
    """The way in which a change was made."""

    ALIAS = "alias"
    STAGE = "stage"
    TAG = "tag"
    CLI = "cli"
    DAG = "dag"
    PODS = "pods"
    """Not asked for by anyone: the controller recorded what the pods took."""


@dataclass(frozen=True)
class Actor:
    """Who made a change, if known, and how."""

    who: str | None
    how: How

    @classmethod
    def person(cls) -> Actor:
        """The person at the command line."""
        try:
            return cls(getpass.getuser(), How.CLI)
        except (KeyError, OSError):
            return cls(None, How.CLI)  # A container may run under a user id that has no name.

    @property
    def headers(self) -> dict[str, str]:
        """Headers that name the actor."""
        user = {USER_HEADER: quote(self.who)} if self.who else {}
        return {AGENT_HEADER: self.how.value, **user}


def actor_of(headers: Mapping[str, str], user: str | None, default: How) -> Actor:
    """The actor that a request's headers (in lower case) name; an authenticated `user` is believed first."""
    agent = headers.get(AGENT_HEADER.lower(), "")
    named = headers.get(USER_HEADER.lower())
    how = How(agent) if agent in (How.CLI, How.DAG) else default
    return Actor(user or (unquote(named) if named else None), how)


def registry_as(settings: PlatformSettings, actor: Actor) -> RegistryClient:
    """A client of the registry that says who it acts for."""
    return settings.registry(actor.headers)


def controller_registry(settings: PlatformSettings) -> RegistryClient:
    """The controller's own client of the registry."""
    return settings.registry({AGENT_HEADER: CONTROLLER_AGENT})
