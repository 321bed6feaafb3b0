"""`lorafleet serve`: one serving pod in the foreground, without the rest of the stack."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from lorafleet_cli.console import notes
from lorafleet_pipeline.base_models import DEFAULT_BASE_MODEL, resolve_base_model
from lorafleet_pipeline.settings import merged_environment, read_env_file
from lorafleet_pipeline.stack.home import StackHome
from lorafleet_pipeline.stack.seaweedfs import S3Keys
from lorafleet_pipeline.stack.secrets import Secrets


def command(
    model: Annotated[str, typer.Option(help="Base model: hub id, local folder or GGUF file.")] = DEFAULT_BASE_MODEL,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 8000,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder of downloaded adapters.")] = None,
    weights: Annotated[str | None, typer.Option(help="Form of the base's weights: model, int8, int4 or nf4.")] = None,
) -> None:
    """Run one serving pod in the foreground, by the registry that LORAFLEET_MLFLOW_URL or a running stack names."""
    home = StackHome.default()
    with notes.status(f"Preparing the base model {model}"):
        folder = resolve_base_model(model)
    cache = cache_dir or home.folder / f"pod-{port}"
    arguments = ("--host", host, "--port", str(port), "--model", str(folder), "--served-name", model)
    environment = {**_environment(home), "LORAFLEET_BASE_MODEL": str(folder)}
    if weights is not None:
        environment["LORAFLEET_WEIGHTS"] = weights
    command = (sys.executable, "-m", "lorafleet_serving", *arguments, "--cache-dir", str(cache))
    # The pod takes this process's place, so that signals reach it and its exit status is ours.
    os.execve(sys.executable, command, environment)


def _environment(home: StackHome) -> dict[str, str]:
    """The environment over the stack's file, with the pod's own keys where those of the whole platform stand."""
    values = merged_environment(read_env_file(home.environment), os.environ)
    if not home.secrets.is_file():
        return values
    secrets = Secrets.load_or_create(home.secrets)
    if values.get("AWS_ACCESS_KEY_ID") != secrets.s3_platform_key:
        return values
    others = {name: value for name, value in values.items() if not name.startswith("AWS_")}
    return others | S3Keys(secrets.s3_pod_key, secrets.s3_pod_secret).environment()
