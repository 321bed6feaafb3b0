"""What `promote` and `rollback` show: the pods while they are waited for, then the result.

A rollback loads the display when there is something to show, by when its alias has moved: it has no time to spare
before, and some while the pods follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from lorafleet_pipeline.registry.promotion import Promotion

if TYPE_CHECKING:
    from rich.status import Status


@contextmanager
def pods_shown(title: str, *, at_once: bool) -> Iterator[Callable[[Mapping[str, str]], None]]:
    """A line on stderr that tells the state of each pod; `at_once` shows it before any is known."""
    with ExitStack() as shown:
        line: Status | None = None

        def show(pods: Mapping[str, str]) -> None:
            from rich.text import Text

            from lorafleet_cli.console import notes

            nonlocal line
            if line is None:
                line = shown.enter_context(notes.status(Text(title)))
            line.update(Text(" | ".join([title, *(f"{url}: {state}" for url, state in pods.items())])))

        if at_once:
            show({})
        yield show


def print_promotion(promotion: Promotion, *, as_json: bool) -> None:
    """Print the result."""
    from lorafleet_cli.console import notes, print_json, results

    if as_json:
        print_json(asdict(promotion))
        return
    moved = "already stood at" if promotion.before == promotion.version else "now points at"
    before = f" (before: {promotion.before})" if promotion.before not in (None, promotion.version) else ""
    results.print(f"{promotion.name}: {promotion.alias} {moved} version {promotion.version}{before}.")
    if promotion.pods:
        results.print(f"Taken by {len(promotion.pods)} pod(s) after {promotion.seconds:.2f} s: {promotion.digest}")
    else:
        notes.print("note: no pod of LORAFLEET_PODS serves its base model, so nothing serves it yet")
