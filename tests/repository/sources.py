"""The project's own source files, as the repository's tests read them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = {
    "lorafleet_contract": ROOT / "serving/lorafleet_contract",
    "lorafleet_serving": ROOT / "serving/lorafleet_serving",
    "lorafleet_pipeline": ROOT / "operators/lorafleet_pipeline",
    "lorafleet_airflow": ROOT / "operators/lorafleet_airflow",
    "lorafleet_cli": ROOT / "operators/lorafleet_cli",
    "lorafleet_plugin": ROOT / "plugins/lorafleet_plugin",
}


@dataclass(frozen=True)
class Import:
    """One imported module, and whether it is imported as soon as the importing module is."""

    module: str
    at_module_level: bool


def python_files(folder: Path) -> list[Path]:
    """Every Python file of a folder."""
    return sorted(folder.rglob("*.py"))


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[Import]:
    """Modules that a file imports at run time; those under `if TYPE_CHECKING:` do not count."""
    yield from _imports(parse(path).body, at_module_level=True)


def _imports(body: list[ast.stmt], *, at_module_level: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, at_module_level) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield Import(node.module or "", at_module_level)
            yield from (Import(f"{node.module}.{alias.name}", at_module_level) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from _imports(node.orelse, at_module_level=at_module_level)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for field in ("body", "orelse", "finalbody"):
                nested = getattr(node, field, [])
                if isinstance(nested, list):
                    yield from _imports(nested, at_module_level=at_module_level and not inside)
            for handler in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
                yield from _imports(handler.body, at_module_level=at_module_level and not inside)
