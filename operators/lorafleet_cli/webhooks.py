"""`lorafleet webhooks`: MLflow's own webhooks to the pods."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from lorafleet_cli.console import notes, print_json, print_table
from lorafleet_cli.options import JsonOption
from lorafleet_pipeline.registry.webhooks import PodWebhook, Webhooks, WebhookState
from lorafleet_pipeline.settings import PlatformSettings


def command(
    make: Annotated[
        bool, typer.Option("--set", help="Have one for each pod, with the secret of the settings.")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Have none for the pods.")] = False,
    test: Annotated[bool, typer.Option("--test", help="Have MLflow make a delivery to each.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove those of pods that are not of the settings.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show, set, test or remove the webhooks by which an MLflow without LoRAFleet's app tells the pods of changes.

    The pods are those of LORAFLEET_PODS, by addresses that MLflow reaches; each takes what is signed with
    LORAFLEET_WEBHOOK_SECRET. The server may take up to a minute to heed a change of them.
    """
    if make + remove + test > 1:
        raise typer.BadParameter("choose one of --set, --remove and --test")
    if prune and not (make or remove):
        raise typer.BadParameter("--prune goes with --set or --remove")
    webhooks = Webhooks(PlatformSettings.load())
    if make:
        found = webhooks.set(prune=prune)
    elif remove:
        found = webhooks.remove(prune=prune)
    else:
        found = webhooks.tested() if test else webhooks.found()
    if as_json:
        print_json({"webhooks": [asdict(item) for item in found]})
    else:
        _show(found)
    # One that MLflow has not got cannot be answered either.
    if test and not all(item.is_answered for item in found):
        raise typer.Exit(1)


def _show(found: list[PodWebhook]) -> None:
    columns, rows = ["pod", "webhook", "id"], [[item.pod, item.state, item.webhook_id] for item in found]
    if any(item.answer for item in found):
        columns.append("answer")
        rows = [[*row, item.answer] for row, item in zip(rows, found, strict=True)]
    print_table(None, columns, rows)
    states = {item.state for item in found}
    if states & {WebhookState.MISSING, WebhookState.DIFFERS}:
        notes.print("note: `lorafleet webhooks --set` makes what is missing, and mends what differs")
    if WebhookState.STRAY in states:
        notes.print("note: a stray one is for no pod of LORAFLEET_PODS, or a second for the same: --prune removes it")
