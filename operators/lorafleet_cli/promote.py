"""`lorafleet promote`: an alias moves to a version, and every pod is seen to follow."""

from __future__ import annotations

from typing import Annotated

import typer

from lorafleet_cli.options import JsonOption
from lorafleet_cli.promotion_result import pods_shown, print_promotion
from lorafleet_contract.aliases import Alias
from lorafleet_pipeline.registry.promotion import promote
from lorafleet_pipeline.settings import PlatformSettings


def command(
    name: Annotated[str, typer.Argument(help="Name of the adapter.")],
    version: Annotated[int, typer.Argument(min=1, help="Version that the alias is to point at.")],
    alias: Annotated[str, typer.Option(help="Alias to move.")] = Alias.CHAMPION.value,
    waive: Annotated[
        str | None, typer.Option(metavar="REASON", help="Serve it although its gate failed; the reason is kept.")
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the pods.")] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Move an alias of an adapter to a version and wait until every pod has taken it."""
    settings = PlatformSettings.load()
    with pods_shown(f"Promoting {name} version {version}", at_once=True) as show:
        result = promote(name, version, settings, alias=alias, wait_s=wait, on_progress=show, waive=waive)
    print_promotion(result, as_json=as_json)
