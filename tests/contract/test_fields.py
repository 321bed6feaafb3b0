from __future__ import annotations

from dataclasses import dataclass

import pytest

from lorafleet_contract.fields import check_field_types


@dataclass(frozen=True)
class Form:
    text: str = "a"
    count: int = 1
    share: float = 0.5
    on: bool = True
    names: tuple[str, ...] = ("a",)
    other: object = None


@pytest.mark.parametrize("form", [Form(), Form(share=1), Form(names=()), Form(other=[1])])
def test_right_types_pass(form: Form) -> None:
    check_field_types(form)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", 1),
        ("count", "1"),
        ("count", True),
        ("count", 1.0),
        ("share", "1"),
        ("share", float("nan")),
        ("on", 1),
        ("names", ["a"]),
        ("names", (1,)),
    ],
)
def test_a_wrong_type_is_named(field: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{field} is .* it must be of type"):
        check_field_types(Form(**{field: value}))  # type: ignore[arg-type]
