"""The shape of the source: length of modules and functions, and names that say nothing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.repository.sources import PACKAGES, ROOT, parse, python_files

MAX_MODULE_LEN = 400
MAX_FUNCTION_LEN = 60
MAX_P90_FUNCTION_LEN = 35
FORBIDDEN_STEMS = {"utils", "util", "common", "helpers", "helper", "misc", "temp", "tmp"}


def _sources() -> list[Path]:
    return [path for folder in PACKAGES.values() for path in python_files(folder)]


def _functions(path: Path) -> list[tuple[str, int]]:
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_no_module_is_longer_than_the_wall() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in [*_sources(), *python_files(ROOT / "tests")]}
    assert not {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > MAX_MODULE_LEN}


def test_no_function_is_longer_than_the_wall() -> None:
    assert not [found for path in _sources() for found in _functions(path) if found[1] > MAX_FUNCTION_LEN]


def test_nine_functions_of_ten_fit_on_a_screen() -> None:
    lengths = sorted(length for path in _sources() for _, length in _functions(path))
    assert lengths[int(len(lengths) * 0.9)] <= MAX_P90_FUNCTION_LEN


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_are_named_for_what_they_are(package: str) -> None:
    assert not [path.name for path in python_files(PACKAGES[package]) if path.stem in FORBIDDEN_STEMS]


def test_every_module_and_public_class_says_what_it_is() -> None:
    silent = []
    for path in _sources():
        tree = parse(path)
        nodes: list[ast.Module | ast.ClassDef] = [tree]
        nodes += [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        silent += [
            f"{path.relative_to(ROOT)} {getattr(node, 'name', '')}" for node in nodes if not ast.get_docstring(node)
        ]
    assert not silent
