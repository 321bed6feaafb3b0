"""`lorafleet rollback`: the champion before comes back."""

from __future__ import annotations

from typing import Annotated

import typer

from lorafleet_cli.options import JsonOption
from lorafleet_cli.promotion_result import pods_shown, print_promotion
from lorafleet_pipeline.registry.promotion import rollback
from lorafleet_pipeline.settings import PlatformSettings


def command(
    name: Annotated[str, typer.Argument(help="Name of the adapter.")],
    to: Annotated[int | None, typer.Option(min=1, help="Version to go back to. Default: the last good one.")] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the pods.")] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Put the last good version of an adapter back: what serves where the champion was refused, else `previous`."""
    with pods_shown(f"Rolling back {name}", at_once=False) as show:
        result = rollback(name, PlatformSettings.load(), to=to, wait_s=wait, on_progress=show)
    print_promotion(result, as_json=as_json)
