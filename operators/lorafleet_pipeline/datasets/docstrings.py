"""Functions of Python's standard library with the one-line summaries that their authors wrote.

Real text that is on every machine. Reads source files as text and imports none of them.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

MAX_SOURCE_CHARS = 420
"""Longest source shown, about 130 tokens: a training step stays cheap."""
_MIN_BODY_CHARS = 20
_MIN_WORDS, _MAX_WORDS = 4, 18
_ELISION = "..."

# Tests, generated data, and parts that some distributions put into packages of their own.
_LEFT_OUT = frozenset(
    {"__pycache__", "config", "distutils", "dist-packages", "ensurepip", "idlelib", "lib-dynload", "lib2to3", "msilib"}
    | {"pydoc_data", "site-packages", "test", "tests", "tkinter", "turtle", "turtledemo", "venv"}
)
_UNFIT = re.compile(
    r"deprecat|undocumented|internal|obsolete|backward|not implemented|>>>|->|::|https?:|``|\bsee\b", re.I
)


@dataclass(frozen=True)
class DocumentedFunction:
    """One function, and what it does."""

    module: str
    name: str
    """Name with the classes around it."""
    source: str
    """Signature and body without the docstring; a long body is cut at a line."""
    summary: str

    @property
    def package(self) -> str:
        """The top-level package."""
        return self.module.partition(".")[0]

    def to_json(self) -> dict[str, str]:
        """The row."""
        return asdict(self)


def documented_functions(library: Path | None = None) -> list[DocumentedFunction]:
    """Every public function of a library folder that has a fitting summary, in the order of modules and lines."""
    root = library or Path(sysconfig.get_path("stdlib"))
    found: list[DocumentedFunction] = []
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        parts = path.relative_to(root).with_suffix("").parts
        if _LEFT_OUT & set(parts) or any(part.startswith(("_sysconfigdata", "test_", "config-")) for part in parts):
            continue
        found.extend(_functions(path, ".".join(part for part in parts if part != "__init__")))
    return found


def _functions(path: Path, module: str) -> Iterator[DocumentedFunction]:
    try:
        text = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            # Old modules hold escapes that the compiler of today warns of.
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, UnicodeDecodeError):
        return  # A template or a file for another Python: it has no functions for us.
    lines = text.splitlines()
    for node, name in _definitions(tree, ()):
        summary = _summary(node)
        source = _source(node, lines)
        if summary is not None and source is not None:
            yield DocumentedFunction(module, name, source, summary)


def _definitions(
    node: ast.AST, classes: tuple[str, ...]
) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Public functions and methods; what is nested in a function is its own affair."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            if not child.name.startswith("_"):
                yield from _definitions(child, (*classes, child.name))
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            if not child.name.startswith("_"):
                yield child, ".".join((*classes, child.name))
        elif isinstance(child, ast.If | ast.Try):
            yield from _definitions(child, classes)


def _summary(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    paragraph = (ast.get_docstring(node) or "").partition("\n\n")[0]
    # Many authors leave out the full stop; one form for all is one thing less to guess.
    summary = " ".join(paragraph.split()).rstrip(".") + "."
    fits = (
        _MIN_WORDS <= len(summary.split()) <= _MAX_WORDS
        and summary.isascii()
        and summary[0].isupper()
        and summary[-2].isalnum()
        and ". " not in summary
        and not summary.startswith(node.name)
        and not _UNFIT.search(summary)
    )
    return summary if fits else None


def _source(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str | None:
    docstring = node.body[0]
    if docstring.lineno == node.lineno or len(node.body) < 2 or docstring.end_lineno is None or node.end_lineno is None:
        return None
    head = lines[node.lineno - 1 : docstring.lineno - 1]
    body = [line for line in lines[docstring.end_lineno : node.end_lineno] if line.strip()]
    indent = lines[node.lineno - 1][: node.col_offset]
    # Not dedent: a line of a long string may stand further left than the function.
    text = "\n".join(line.removeprefix(indent) for line in (*head, *body)).expandtabs(4)
    if not text.isascii() or len("".join(body).strip()) < _MIN_BODY_CHARS:
        return None
    return _cut(text)


def _cut(text: str) -> str | None:
    if len(text) <= MAX_SOURCE_CHARS:
        return text
    end = text.rfind("\n", 0, MAX_SOURCE_CHARS - len(_ELISION) - 5)
    kept = text[:end].rstrip()
    # A signature that alone fills the space says too little of what is done.
    return f"{kept}\n    {_ELISION}" if kept.count("\n") >= 2 else None
