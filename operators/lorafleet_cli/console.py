"""What the commands print: results on stdout, as a table or as one JSON object; progress and notes on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

_WHOLE_COLUMNS = frozenset({"component", "state", "pid", "port", "restarts", "uptime"})

# What is shown comes from users, models and logs: `[...]` in it is text, and never markup.
results = Console(highlight=False, soft_wrap=True, markup=False)
notes = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def print_json(document: Mapping[str, Any]) -> None:
    """Print a result for programs: exactly one JSON object, and nothing else, on stdout."""
    typer.echo(json.dumps(document, indent=2, default=str))


def print_table(title: str | None, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a result for people."""
    results.print(make_table(title, columns, rows), soft_wrap=False)


def make_table(title: str | None, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A table in the one style of all commands; None is shown as a dash, and a `Text` with its style."""
    table = Table(
        title=None if title is None else Text(title), title_justify="left", title_style="bold", header_style="bold"
    )
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in _WHOLE_COLUMNS)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def _cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    return Text("-" if value is None or value == "" else str(value))


def make_progress() -> Progress:
    """A progress display on stderr; it leaves stdout to results."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=notes,
        transient=True,
        # Into a file it would write nothing but an empty line.
        disable=not notes.is_terminal,
    )


def format_duration(seconds: float | None) -> str | None:
    """A duration for a table: `47 s`, `12 min`, `3.5 h`."""
    if seconds is None:
        return None
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
