"""Processes that a stack left behind: known by recorded pid and start time, or by the id in their environment."""

from __future__ import annotations

import os

from lorafleet_pipeline.process_identity import ProcessIdentity
from lorafleet_pipeline.stack.process import group_members, processes_with, stop_processes
from lorafleet_pipeline.stack.state import StackState


def stop_marked(variable: str, value: str, limit_s: float) -> list[ProcessIdentity]:
    """Stop every process whose environment holds `variable=value`, the caller apart; returns the stopped ones."""
    marked = [process for process in processes_with(variable, value) if process.pid != os.getpid()]
    stop_processes(marked, limit_s)
    return marked


def stop_leftovers(state: StackState, variable: str, limit_s: float) -> list[ProcessIdentity]:
    """Stop what still runs of a stack whose supervisor is gone; returns the stopped processes."""
    recorded: list[ProcessIdentity] = []
    for component in state.components:
        if component.process is not None and component.process.is_alive:
            recorded += group_members(component.process.pid)
    stop_processes(recorded, limit_s)
    return recorded + stop_marked(variable, state.stack_id, limit_s)
