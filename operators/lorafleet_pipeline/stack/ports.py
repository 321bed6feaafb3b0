"""TCP ports on the loopback address: found free, and remembered in the home folder.

Addresses that stay the same over restarts can be bookmarked; a port that someone else has taken meanwhile is
replaced, and that is said.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.stack.private_file import write_private

LOOPBACK = "127.0.0.1"
HIGHEST_PORT = 65_535
# SeaweedFS listens for gRPC this far above its admin port, and takes no other.
ADMIN_GRPC_OFFSET = 10_000

PREFERRED_PORTS: Mapping[str, int] = {
    "airflow": 8080,
    "mlflow": 5000,
    "pod": 8000,
    "s3": 8333,
    "s3_grpc": 18333,
    "master": 9333,
    "master_grpc": 19333,
    "volume": 9340,
    "volume_grpc": 19340,
    "filer": 8888,
    "filer_grpc": 18888,
    "admin": 23646,
}


@dataclass(frozen=True)
class PortChoice:
    """The ports of a stack by name, and what a person should know about the choice."""

    ports: Mapping[str, int]
    notes: tuple[str, ...] = ()


def free_port(highest: int = HIGHEST_PORT) -> int:
    """A port that nothing listens on now."""
    while True:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
        if port <= highest:
            return port


def is_free(port: int) -> bool:
    """Whether a server could listen on a port now."""
    with socket.socket() as probe:
        # Connections that linger after a server's end do not keep its successor from listening.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def choose_ports(path: Path, fixed: Mapping[str, int], is_reserved: Callable[[int], bool]) -> PortChoice:
    """Choose every port of the stack and remember the choice in a file.

    Args:
        path: the file that remembers.
        fixed: ports that the user demands, by name.
        is_reserved: says whether another stack has spoken for a port that nothing listens on yet.

    Raises:
        StackError: a demanded port is taken, out of range, demanded twice, or of an unknown name.
    """

    def is_usable(port: int) -> bool:
        return is_free(port) and not is_reserved(port)

    check_ports(fixed)
    for name, port in fixed.items():
        if not _fits(name, port, set(), is_usable):
            raise StackError(
                f"port {port} for {name} is taken by another process: stop that, or choose another, "
                f"for instance `--port {name}={free_port()}`"
            )
    remembered = read_ports(path)
    chosen: dict[str, int] = {}
    notes = []
    for name, preferred in PREFERRED_PORTS.items():
        wanted = fixed.get(name) or remembered.get(name)
        spoken_for = {*chosen.values(), *(port for other, port in fixed.items() if other != name)}
        is_ours = wanted is not None and _fits(name, wanted, spoken_for, is_usable)
        chosen[name] = wanted if wanted and is_ours else _next_free(name, preferred, spoken_for, is_usable)
        if wanted not in (None, chosen[name]):
            notes.append(f"port {wanted} of {name} is taken by another process; {name} uses {chosen[name]} instead")
    write_private(path, json.dumps(chosen, indent=1) + "\n")
    return PortChoice(chosen, tuple(notes))


def read_ports(path: Path) -> dict[str, int]:
    """The ports that a file remembers, by name; none where it is absent or damaged: others are found then."""
    try:
        document = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    known = document.items() if isinstance(document, dict) else ()
    return {name: port for name, port in known if name in PREFERRED_PORTS and _is_port(port)}


def check_ports(fixed: Mapping[str, int]) -> None:
    """Look at the ports that a user demands, by name.

    Raises:
        StackError: a name is unknown, a port is out of range, or two names have one port.
    """
    for name, port in fixed.items():
        if others := [other for other in fixed if other != name and fixed[other] == port]:
            raise StackError(f"port {port} is given to both {name} and {others[0]}: choose another for one of them")
        if name not in PREFERRED_PORTS:
            raise StackError(f"no port is named {name!r}: choose one of {', '.join(PREFERRED_PORTS)}")
        if not _is_port(port):
            raise StackError(f"port {port} for {name} is not between 1 and {HIGHEST_PORT}: choose another")


def _is_port(port: object) -> bool:
    return isinstance(port, int) and 1 <= port <= HIGHEST_PORT


def _next_free(name: str, preferred: int, spoken_for: set[int], is_usable: Callable[[int], bool]) -> int:
    for port in _candidates(preferred):
        if _fits(name, port, spoken_for, is_usable):
            return port
    raise StackError(f"no free port was found for {name}: stop what holds them, or name one with `--port {name}=N`")


def _fits(name: str, port: int, spoken_for: set[int], is_usable: Callable[[int], bool]) -> bool:
    needed = (port, port + ADMIN_GRPC_OFFSET) if name == "admin" else (port,)
    return all(item <= HIGHEST_PORT and item not in spoken_for and is_usable(item) for item in needed)


def _candidates(preferred: int) -> Iterator[int]:
    yield from range(preferred, preferred + 200)
    for _ in range(200):
        yield free_port(HIGHEST_PORT - ADMIN_GRPC_OFFSET)
