"""`lorafleet demo`: the whole path once, shown as it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lorafleet_cli.console import format_duration, make_table, notes, print_json, print_table, results
from lorafleet_cli.options import JsonOption
from lorafleet_cli.up import HomeOption
from lorafleet_pipeline.demo.airflow_client import RunState
from lorafleet_pipeline.demo.demo import DemoOptions, run_demo
from lorafleet_pipeline.demo.result import DemoResult
from lorafleet_pipeline.demo.source import DEFAULT_TASK, DemoSource
from lorafleet_pipeline.exceptions import DemoError
from lorafleet_pipeline.spec import Metric
from lorafleet_pipeline.stack.options import StackOptions
from lorafleet_pipeline.stack.status import OnProgress, StackStatus

_TASKS = ("validate", "train", "evaluate", "register", "approve", "promote")
_COLOURS = {"success": "green", "running": "cyan", "failed": "red", "up_for_retry": "yellow", "skipped": "yellow"}


def command(
    task: Annotated[
        str, typer.Option(help="Adapter with a spec; its data lies below LORAFLEET_TASK_DATA")
    ] = DEFAULT_TASK,
    data: Annotated[Path | None, typer.Option(help="Your own data: a file or folder of jsonl, csv or parquet")] = None,
    prompt: Annotated[str | None, typer.Option(help="With --data: Jinja template over its columns")] = None,
    completion: Annotated[str | None, typer.Option(help="With --data: Jinja template of the wanted answer")] = None,
    metric: Annotated[
        Metric | None, typer.Option(help=f"With --data: how answers are judged. Default: {DemoSource.metric}")
    ] = None,
    home: HomeOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack up")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps, instead of the spec's")] = None,
    force: Annotated[bool, typer.Option("--force", help="Train again though nothing has changed")] = False,
    as_json: JsonOption = False,
) -> None:
    """From a dataset to a promoted adapter that answers over REST, by one command."""
    source = _source(task, data, prompt, completion, metric)
    options = DemoOptions(source=source, stack=StackOptions(), home=home, keep=keep, steps=steps, force=force)
    with _Screen() as screen:
        result = run_demo(options, screen)
    if as_json:
        print_json(result.to_json())
    else:
        _show(result)


def _source(
    task: str, data: Path | None, prompt: str | None, completion: str | None, metric: Metric | None
) -> DemoSource:
    if data is None and not (prompt is completion is metric is None):
        raise DemoError("--prompt, --completion and --metric go with --data: give it, or leave them out")
    judged = DemoSource.metric if metric is None else metric.value
    return DemoSource(task, data, _unescaped(prompt), _unescaped(completion), judged)


class _Screen:
    """Live progress on a terminal; a line for each change elsewhere. Both on stderr."""

    def __init__(self) -> None:
        self._live = Live(console=notes, transient=True) if notes.is_terminal else None
        self._told: dict[str, str] = {}

    def __enter__(self) -> _Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def stack_progress(self) -> OnProgress:
        return self._stack

    def step(self, text: str) -> None:
        notes.print(text)

    def dag_run(self, run: RunState, training: str | None) -> None:
        states = {task.task_id: task for task in run.tasks}
        rows = [(name, states[name].state, states[name].duration_s) for name in _TASKS if name in states]
        columns = ("task", "state", "time")
        table = make_table(
            f"DAG run: {run.state}",
            columns,
            ((name, _coloured(state), format_duration(duration)) for name, state, duration in rows),
        )
        if training is not None and states.get("train") and states["train"].state == "running":
            table.caption = Text(training)
            self._line("training", training)
        self._line("tasks", ", ".join(f"{name} {state or 'waiting'}" for name, state, _ in rows))
        self._draw(table)

    def _stack(self, status: StackStatus) -> None:
        rows = [(entry.name, str(entry.state), entry.detail) for entry in status.components]
        self._line("stack", ", ".join(f"{name} {state}" for name, state, _ in rows))
        self._draw(make_table("Stack", ("component", "state", ""), rows))

    def _draw(self, table: Table) -> None:
        if self._live is not None:
            self._live.update(table)

    def _line(self, about: str, text: str) -> None:
        if self._live is None and self._told.get(about) != text:
            self._told[about] = text
            notes.print(text, soft_wrap=True)


def _show(result: DemoResult) -> None:
    low, high = result.interval
    rows = [
        (f"base, {result.metric}", f"{result.base:.3f}"),
        (f"adapter, {result.metric}", f"{result.adapter:.3f}"),
        ("lift", f"{result.lift:+.3f}  (95 % interval {low:+.3f} to {high:+.3f}, {result.rows} rows)"),
        ("version", f"{result.name}:{result.version}"),
        ("digest", result.digest),
        ("S3", result.uri),
        ("time", format_duration(result.seconds)),
    ]
    print_table("Result", ("figure", "value"), rows)
    comparison = result.comparison
    print_table(
        "The same prompt over REST",
        ("who", "text"),
        [("prompt", comparison.prompt), ("base", comparison.base), (result.name, comparison.champion)],
    )
    shown = [
        (a.name, a.url, a.login if results.is_terminal else a.login and "in secrets.json") for a in result.addresses
    ]
    print_table("Web interfaces", ("what", "address", "login"), shown)
    if not result.stack_kept:
        results.print("The stack is stopped. `lorafleet up` starts it again; `lorafleet demo --keep` leaves it up.")


def _unescaped(template: str | None) -> str | None:
    r"""A template as typed in a shell, where `\n` is two characters."""
    return None if template is None else template.replace("\\n", "\n")


def _coloured(state: str | None) -> Text:
    return Text(state or "waiting", style=_COLOURS.get(state or "", ""))
