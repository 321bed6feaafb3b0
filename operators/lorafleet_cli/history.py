"""`lorafleet history`: what was promoted when, and by whom."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from lorafleet_cli.console import print_json, print_table
from lorafleet_cli.options import JsonOption
from lorafleet_pipeline.registry.history import history
from lorafleet_pipeline.settings import PlatformSettings


def command(
    name: Annotated[str, typer.Argument(help="Name of the adapter.")],
    limit: Annotated[int, typer.Option(min=1, help="Most changes shown; the newest are.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """Show every change of an adapter's aliases and stages; `now` marks what still stands."""
    entries = history(name, PlatformSettings.load(), limit=limit)
    if as_json:
        print_json({"name": name, "history": [asdict(entry) for entry in entries]})
        return
    rows = [
        (
            item.at[:19].replace("T", " "),
            item.what,
            item.before,
            item.after,
            item.how,
            item.who,
            "now" if item.is_current else None,
        )
        for item in entries
    ]
    print_table(f"{name} (times in UTC)", ("when", "what", "from", "to", "how", "who", ""), rows)
