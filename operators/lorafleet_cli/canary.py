"""`lorafleet canary`: a challenger answers a share of a name's requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from lorafleet_cli.console import notes, print_json, print_table, results
from lorafleet_cli.options import JsonOption
from lorafleet_cli.promotion_result import pods_shown
from lorafleet_pipeline.registry.canary_share import CanaryState, begin_canary, canary_state, set_share
from lorafleet_pipeline.settings import PlatformSettings

_DEFAULT_SHARE = 0.1


def command(
    name: Annotated[str, typer.Argument(help="Name of the adapter.")],
    version: Annotated[int | None, typer.Argument(min=1, help="Version that becomes the challenger.")] = None,
    share: Annotated[
        float | None, typer.Option(min=0, max=1, help=f"Share of the requests; {_DEFAULT_SHARE} with a version.")
    ] = None,
    end: Annotated[bool, typer.Option("--end", help="End the canary; the champion answers all.")] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the pods.")] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Begin, change, end or show a canary: requests that a challenger answers in the champion's place.

    The same user (the field `user`, or the header x-lorafleet-user) reaches the same version. A pod that finds the
    challenger worse than the champion stops asking it, and the controller ends the canary.
    """
    if end and (version is not None or share is not None):
        raise typer.BadParameter("--end stands alone: leave out the version and --share")
    settings = PlatformSettings.load()
    if version is not None:
        with pods_shown(f"Bringing up {name} version {version}", at_once=True) as show:
            wanted = _DEFAULT_SHARE if share is None else share
            state = begin_canary(name, version, wanted, settings, wait_s=wait, on_progress=show)
    elif end or share is not None:
        state = set_share(name, share or 0.0, settings)
    else:
        state = canary_state(name, settings)
    if as_json:
        print_json(asdict(state))
    else:
        _show(state)


def _show(state: CanaryState) -> None:
    if state.share > 0:
        results.print(f"{state.name}: version {state.challenger} answers {state.share:.0%} of the requests.")
    else:
        results.print(f"{state.name}: no canary, the champion answers all requests.")
    if state.stopped is not None:
        results.print(f"The last one was ended: {state.stopped}")
    if any(state.pods.values()):
        print_table(None, ("pod", "challenger", "share", "answers", "stopped"), list(_rows(state)))
    elif state.share > 0:
        notes.print("note: no pod has begun it yet: see again in some seconds")


def _rows(state: CanaryState) -> Iterator[tuple[object, ...]]:
    for url, canary in state.pods.items():
        if canary is not None:
            yield url, canary.version, f"{canary.share:.0%}", canary.num_answers, canary.stopped
