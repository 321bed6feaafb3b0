"""Types of the fields of a document that came as JSON, checked against the dataclass that it becomes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_CHECKS: dict[str, Callable[[object], bool]] = {
    "str": lambda value: isinstance(value, str),
    "str | None": lambda value: value is None or isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
    "tuple[str, ...]": lambda value: isinstance(value, tuple) and all(isinstance(item, str) for item in value),
}
"""By the annotation as it is written; fields of other types check themselves."""


def check_field_types(document: DataclassInstance) -> None:
    """Check the fields of plain types.

    Raises:
        TypeError: one has a value of another type.
    """
    for field in fields(document):
        value = getattr(document, field.name)
        if field.type in _CHECKS and not _CHECKS[str(field.type)](value):
            raise TypeError(f"{field.name} is {str(value)[:60]!r}, it must be of type {field.type}")
