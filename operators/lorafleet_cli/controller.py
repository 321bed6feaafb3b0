"""`lorafleet controller`: the registry controller beside a managed MLflow, until it is told to stop."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Annotated

import typer

from lorafleet_cli.console import notes


def command(
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks at the registry.")] = 2.0,
) -> None:
    """Run the registry controller in the foreground, by LORAFLEET_MLFLOW_URL or a running stack. Ctrl-C ends it."""
    from lorafleet_pipeline.registry.controller import run
    from lorafleet_pipeline.settings import PlatformSettings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = PlatformSettings.load()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    notes.print(f"Controlling the registry at {settings.mlflow_url}")
    run(settings, stop, interval_s=interval)
