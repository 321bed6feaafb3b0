"""What the stack puts into Airflow's database: the training pool, and the connections to its own services.

Each is made where it is missing and is the user's from then on. Of a connection the stack changes the address alone,
and only where that is still the one that it has set itself: so it follows a service to another port, and leaves one
that the user has named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.stack.ports import LOOPBACK
from lorafleet_pipeline.stack.private_file import write_private

TRAINING_POOL = "training"


class ConnectionName(NamedTuple):
    """Id and type of a connection."""

    id: str
    type: str


REGISTRY_CONNECTION = ConnectionName("lorafleet_registry", "lorafleet_mlflow")
POD_CONNECTION = ConnectionName("lorafleet_pods", "lorafleet_pod")


@dataclass(frozen=True)
class AirflowEntities:
    """The pool, and the address of each connection. `memory` is the file of the addresses that were set before."""

    memory: Path
    addresses: Mapping[ConnectionName, str]

    def put(self, client: httpx.Client) -> None:
        """Make what is missing, and correct addresses, through a client that is signed in.

        Raises:
            StackError: Airflow refuses, or the memory is damaged.
            httpx.HTTPError: Airflow does not answer.
        """
        pool = {"name": TRAINING_POOL, "slots": 1, "include_deferred": True, "description": "Trainings at one time"}
        _create_missing(client, "/api/v2/pools", [pool])
        _create_missing(client, "/api/v2/connections", [_body(name, url) for name, url in self.addresses.items()])
        remembered = self._remembered()
        current = {name.id: url for name, url in self.addresses.items()}
        for name, url in self.addresses.items():
            if remembered.get(name.id) != url:
                _move(client, name, remembered.get(name.id), url)
        if remembered | current != remembered:
            write_private(self.memory, json.dumps(remembered | current) + "\n")

    def _remembered(self) -> dict[str, str]:
        if not self.memory.is_file():
            return {}
        try:
            return {str(conn_id): str(url) for conn_id, url in json.loads(self.memory.read_text()).items()}
        except (ValueError, AttributeError) as error:
            raise StackError(f"{self.memory} is damaged: delete it, and the next start writes it anew") from error


def _move(client: httpx.Client, name: ConnectionName, before: str | None, url: str) -> None:
    """Set a connection's address, unless a user has."""
    path = f"/api/v2/connections/{name.id}"
    host = client.get(path).raise_for_status().json()["host"] or ""
    # Without a memory, what is on this machine was most likely set by the stack.
    is_ours = host == before if before is not None else host.startswith(f"http://{LOOPBACK}:")
    if is_ours and host != url:
        client.patch(path, params={"update_mask": "host"}, json=_body(name, url)).raise_for_status()


def _body(name: ConnectionName, url: str) -> dict[str, Any]:
    return {"connection_id": name.id, "conn_type": name.type, "host": url}


def _create_missing(client: httpx.Client, path: str, entities: list[dict[str, Any]]) -> None:
    action = {"action": "create", "entities": entities, "action_on_existence": "skip"}
    outcome = client.patch(path, json={"actions": [action]}).raise_for_status().json()
    if errors := outcome.get("create", {}).get("errors"):
        raise StackError(f"Airflow refused {path}: {errors[0].get('error', errors[0])}")
