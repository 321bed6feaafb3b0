"""`lorafleet up`, `down` and `status`: the embedded stack."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.live import Live
from rich.text import Text

from lorafleet_cli.console import format_duration, make_table, notes, print_json, print_table, results
from lorafleet_cli.options import JsonOption
from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.stack.options import ALL_COMPONENTS, StackOptions, expand_components
from lorafleet_pipeline.stack.stack import Stack
from lorafleet_pipeline.stack.state import ComponentState
from lorafleet_pipeline.stack.status import StackStatus

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Folder of the stack. Default: $LORAFLEET_HOME, or ~/.lorafleet.")
]
_COLOURS = {
    ComponentState.READY: "green",
    ComponentState.FAILED: "red",
    ComponentState.BACKING_OFF: "red",
    ComponentState.UNHEALTHY: "yellow",
    ComponentState.ORPHANED: "yellow",
    ComponentState.STOPPED: "dim",
}


def command(
    only: Annotated[
        str | None,
        typer.Option(help=f"Comma-separated choice of {', '.join(ALL_COMPONENTS)}; `airflow` is four of them."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Base model of the pod: hub id, local folder or GGUF file.")
    ] = StackOptions.model,
    dags: Annotated[Path | None, typer.Option(help="DAG folder. Default: the project's.")] = None,
    port: Annotated[
        list[str] | None, typer.Option("--port", help="NAME=PORT, repeatable: airflow, mlflow, pod, s3.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start the embedded stack and wait until it is ready."""
    options = StackOptions(
        components=expand_components(only.split(",")) if only is not None else ALL_COMPONENTS,
        model=model,
        dags=str(dags) if dags else None,
        ports=_parse_ports(port or []),
    )
    began = time.monotonic()
    status = _up_with_progress(Stack(home), options)
    for note in status.notes:
        notes.print(f"note: {note}")
    if as_json:
        print_json(_document(status) | {"seconds": round(time.monotonic() - began, 1)})
        return
    results.print(f"The stack of {status.home} is ready after {time.monotonic() - began:.0f} s.")
    print_table(None, ("service", "address"), _addresses(status))
    results.print("Stop it with `lorafleet down`.")


def down(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Stop the embedded stack; what it stored stays."""
    stack = Stack(home)
    with notes.status("Stopping the stack"):
        stopped = stack.down()
    if as_json:
        print_json({"home": stack.home.folder, "stopped": stopped})
    else:
        results.print(f"The stack of {stack.home.folder} {'is stopped' if stopped else 'was not running'}.")


def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show the embedded stack's components; ends with 1 unless all are ready."""
    found = Stack(home).status()
    if as_json:
        print_json(_document(found))
    elif not found.components:
        results.print(f"No stack was ever started in {found.home}.")
    else:
        columns = ("component", "state", "pid", "port", "restarts", "uptime")
        print_table(f"Stack of {found.home}", columns, _rows(found))
        results.print(f"Logs: {found.home / 'logs'}/COMPONENT.log")
        for entry in found.components:
            if entry.detail:
                results.print(f"{entry.name}: {entry.detail}")
    if not found.is_ready:
        raise typer.Exit(1)


def _up_with_progress(stack: Stack, options: StackOptions) -> StackStatus:
    if not notes.is_terminal:
        return stack.up(options, _ProgressLines())
    with Live(console=notes, transient=True) as live:
        return stack.up(options, lambda status: live.update(_progress_table(status)))


class _ProgressLines:
    """Progress where there is no terminal: one line for each change."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[ComponentState, str]] = {}

    def __call__(self, status: StackStatus) -> None:
        for entry in status.components:
            if self._told.get(entry.name) != (entry.state, entry.detail):
                self._told[entry.name] = (entry.state, entry.detail)
                notes.print(f"{entry.name}: {entry.state} {entry.detail}".rstrip(), soft_wrap=True)


def _progress_table(status: StackStatus) -> Any:
    rows = [(entry.name, _coloured(entry.state), entry.detail) for entry in status.components]
    return make_table(f"Starting the stack of {status.home}", ("component", "state", ""), rows)


def _rows(status: StackStatus) -> list[tuple[object, ...]]:
    return [
        (
            *(entry.name, _coloured(entry.state), entry.pid, _port(entry.url)),
            *(entry.restarts, _uptime(entry.ready_since)),
        )
        for entry in status.components
    ]


def _addresses(status: StackStatus) -> list[tuple[str, str]]:
    urls = status.urls
    rows = [("Airflow", urls.airflow), ("Airflow login", _login(status)), ("MLflow", urls.mlflow)]
    rows += [("pod", urls.pod), ("S3", urls.s3)]
    return [(name, text) for name, text in rows if text]


def _login(status: StackStatus) -> str | None:
    if status.airflow_user is None:
        return None
    # The password is for the eyes before a terminal, and not for the log of a script.
    shown = status.airflow_password if results.is_terminal else f"in {status.home / 'secrets.json'}"
    return f"user {status.airflow_user}, password {shown}"


def _document(status: StackStatus) -> dict[str, Any]:
    urls = status.urls
    return {
        "home": status.home,
        "ready": status.is_ready,
        "supervised": status.is_supervised,
        "urls": {"airflow": urls.airflow, "mlflow": urls.mlflow, "pod": urls.pod, "s3": urls.s3},
        "airflow_user": status.airflow_user,
        "notes": list(status.notes),
        "components": [
            {
                "name": entry.name,
                "state": entry.state,
                "detail": entry.detail,
                "pid": entry.pid,
                "url": entry.url,
                "port": _port(entry.url),
                "restarts": entry.restarts,
                "uptime_s": None if entry.ready_since is None else round(time.time() - entry.ready_since, 1),
                "log": entry.log,
            }
            for entry in status.components
        ],
    }


def _port(url: str | None) -> int | None:
    return urlsplit(url).port if url else None


def _uptime(ready_since: float | None) -> str | None:
    return None if ready_since is None else format_duration(time.time() - ready_since)


def _coloured(state: ComponentState) -> Text:
    return Text(str(state), style=_COLOURS.get(state, ""))


def _parse_ports(given: list[str]) -> dict[str, int]:
    ports = {}
    for entry in given:
        name, separator, number = entry.partition("=")
        if not separator or not number.isdigit():
            raise StackError(f"--port {entry} is not NAME=PORT: write for instance `--port mlflow=5001`")
        ports[name] = int(number)
    return ports
