"""`lorafleet bench`: measure, peers and limits in the same run.

The benchmarks stand in `tests/benchmarks` of a checkout; they are not shipped.
"""

from __future__ import annotations

import importlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lorafleet_contract.openmp import wait_briefly
from lorafleet_pipeline.base_models import DEFAULT_BASE_MODEL, resolve_base_model
from lorafleet_pipeline.exceptions import InvalidSetting
from lorafleet_pipeline.settings import PlatformSettings

CHECKOUT = Path(__file__).resolve().parents[2]
_MEASURED_VERSIONS = ("lorafleet", "torch", "transformers", "peft", "mlflow")

command = typer.Typer(no_args_is_help=True, help="Measure, peers and limits in the same run.")


@command.command()
def promotion(
    name: Annotated[str, typer.Argument(help="A registered adapter with a champion")] = "docstrings",
    repeats: Annotated[int, typer.Option(min=1, help="Moves of each kind, idle and under load")] = 25,
    clients: Annotated[int, typer.Option(min=1, help="Clients of the load")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
) -> None:
    """From a change in the registry to the first token of the new version, on the running stack."""
    settings = PlatformSettings.load()
    notes = Console(stderr=True)
    benchmark = _benchmark("promotion")
    plan = benchmark.PromotionPlan(repeats, clients)
    results = benchmark.measure(settings, name, plan, notes.print)
    _show("promotion", results, as_json=as_json)


@command.command()
def serving(
    model: Annotated[str, typer.Option(help="Base model: a folder or a hub id")] = DEFAULT_BASE_MODEL,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of decoding; each measures everything once")] = 3,
    load_seconds: Annotated[float, typer.Option(min=0, help="Length of each closed-loop load; 0 leaves them out")] = 20,
    load_repeats: Annotated[int, typer.Option(min=1, help="How often each closed-loop load is measured")] = 1,
    vllm_python: Annotated[
        Path | None, typer.Option(help="Interpreter of an environment with vLLM, a further peer; unset leaves it out")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
) -> None:
    """Decoding with 0, 1, 8 and 25 adapters beside transformers, PEFT and the machine's limits; then users' loads."""
    wait_briefly()  # As in the pod's engine process.
    folder = resolve_base_model(model)
    notes = Console(stderr=True)
    benchmark = _benchmark("serving")
    plan = benchmark.LoadPlan(seconds=load_seconds, repeats=load_repeats)
    vllm = None if vllm_python is None else benchmark.VllmPeer(vllm_python)
    results = benchmark.measure(folder, repeats, plan, notes.print, vllm)
    left_out = [name for name in benchmark.VLLM_NAMES if name not in results]
    peers = {} if vllm is None else {"vllm": vllm.version}
    _show("serving", results, as_json=as_json, left_out=left_out, peers=peers)


@command.command()
def cache(
    model: Annotated[str, typer.Option(help="Base model: a folder or a hub id")] = DEFAULT_BASE_MODEL,
    seconds: Annotated[float, typer.Option(min=1, help="Length of each load")] = 300,
    seeds: Annotated[int, typer.Option(min=0, help="Loads of each kind; 0 leaves them out")] = 3,
    cold: Annotated[int, typer.Option(min=0, help="Large adapters that come under load; 0 leaves them out")] = 3,
    fleet: Annotated[int, typer.Option(min=0, help="Adapters beyond what the tiers hold; 0 leaves them out")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
) -> None:
    """Times to the first token where adapters do not all fit on the device, against the case in which they do."""
    notes = Console(stderr=True)
    benchmark = _benchmark("cache")
    plan = benchmark.CachePlan(seconds=seconds, seeds=seeds, cold=cold, fleet=fleet)
    _show("cache", benchmark.measure(resolve_base_model(model), plan, notes.print), as_json=as_json)


def _benchmark(name: str) -> ModuleType:
    if not (CHECKOUT / "tests" / "benchmarks" / f"{name}.py").is_file():
        raise InvalidSetting(
            f"{CHECKOUT} holds no tests/benchmarks/{name}.py: benchmarks run from a checkout of the project"
        )
    sys.path.insert(0, str(CHECKOUT))
    return importlib.import_module(f"tests.benchmarks.{name}")


def _show(
    name: str,
    results: dict[str, float],
    *,
    as_json: bool,
    left_out: Sequence[str] = (),
    peers: Mapping[str, str] | None = None,
) -> None:
    """`peers` are versions of what was measured in environments of its own."""
    if as_json:
        document = {**_circumstances(peers or {}), "benchmark": name, "left_out": left_out, "results": results}
        print(json.dumps(document, indent=2))
        return
    table = Table(title=f"bench {name}", caption=f"left out: {', '.join(left_out)}" if left_out else None)
    table.add_column("figure")
    table.add_column("value", justify="right")
    for key, value in results.items():
        table.add_row(key, f"{value:.3f}")
    Console().print(table)


def _circumstances(peers: Mapping[str, str]) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    return {
        "hardware": {
            "machine": platform.machine(),
            "cpu": _cpu(),
            "load": Path("/proc/loadavg").read_text().split()[:3],
        },
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _MEASURED_VERSIONS},
            **peers,
        },
        "commit": commit.stdout.strip(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor()
