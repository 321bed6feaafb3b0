"""What `promote` and `rollback` show: the pods while they are waited for, then the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict

from rich.text import Text

from lorafleet_cli.console import notes, print_json, results
from lorafleet_pipeline.registry.promotion import Promotion


@contextmanager
def pods_shown(title: str) -> Iterator[Callable[[Mapping[str, str]], None]]:
    """A line on stderr that tells the state of each pod."""
    with notes.status(Text(title)) as status:
        yield lambda pods: status.update(Text(" | ".join([title, *(f"{url}: {state}" for url, state in pods.items())])))


def print_promotion(promotion: Promotion, *, as_json: bool) -> None:
    """Print the result."""
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
