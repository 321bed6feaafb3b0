"""`lorafleet adapters`: what the registry wants and what the pods serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from lorafleet_cli.console import notes, print_json, print_table, results
from lorafleet_cli.options import JsonOption
from lorafleet_contract.aliases import Alias
from lorafleet_pipeline.registry.overview import AdapterOverview, fleet_overview
from lorafleet_pipeline.settings import PlatformSettings

_ALIASES = (Alias.CHAMPION, Alias.LIVE, Alias.PREVIOUS, Alias.CHALLENGER, Alias.SHADOW)


def command(as_json: JsonOption = False) -> None:
    """Show every adapter: its aliases, the champion's gate and state, and what each pod serves."""
    overview = fleet_overview(PlatformSettings.load())
    if as_json:
        print_json(asdict(overview))
        return
    # Only those that somebody has, so that the table fits a narrow terminal.
    aliases = [alias for alias in _ALIASES if any(alias in adapter.aliases for adapter in overview.adapters)]
    columns = ("adapter", "versions", *aliases, "gate", "state", "pods serve")
    print_table(None, columns, [_row(adapter, aliases) for adapter in overview.adapters])
    for adapter in overview.adapters:
        for trial in adapter.trials():
            results.print(f"{adapter.name}: {trial}")
        if adapter.error:
            results.print(f"{adapter.name}: {adapter.error}")
    for error in overview.silent_pods.values():
        notes.print(f"note: {error}")


def _row(adapter: AdapterOverview, aliases: Sequence[Alias]) -> tuple[object, ...]:
    serving = ", ".join(sorted({"-" if version is None else str(version) for version in adapter.serving.values()}))
    versions = [adapter.aliases.get(alias) for alias in aliases]
    return (adapter.name, adapter.num_versions, *versions, adapter.gate, adapter.state, serving)
