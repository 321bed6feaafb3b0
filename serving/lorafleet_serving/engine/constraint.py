"""What an answer's text is bound to: a JSON schema, a regular expression or a grammar. Plain data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from lorafleet_serving.exceptions import InvalidRequest

MAX_CONSTRAINT_CHARACTERS = 65_536
"""Longest text of a constraint. What compiles it recurses at most once for each character, and has the stack for it."""

MAX_GBNF_CHARACTERS = 2048
"""Longest text of a constraint in GBNF. Its translation slows the process by the square of its length."""

JSON_SPACING = r"[ \t]?(\r?\n[ \t]{0,32})?"
"""What may stand between the parts of JSON: a blank, or a new line with its indentation. Spacing without end is valid
too, but a model that is led away from its own words likes to go on with it."""


class ConstraintKind(StrEnum):
    """What the text of a constraint is."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"
    GBNF = "gbnf"
    """Of callers alone: `gbnf.in_lark` makes Lark of it, which the engine reads."""


@dataclass(frozen=True)
class Constraint:
    """What the whole answer must fit."""

    kind: ConstraintKind
    text: str
    field: str = field(default="structured_outputs", compare=False)
    """Name of the request's field that asks for it, for errors."""

    def __post_init__(self) -> None:
        is_gbnf = self.kind is ConstraintKind.GBNF
        limit = MAX_GBNF_CHARACTERS if is_gbnf else MAX_CONSTRAINT_CHARACTERS
        if len(self.text) > limit:
            read, remedy = (" of GBNF", ", or write it in Lark") if is_gbnf else ("", "")
            raise InvalidRequest(
                f"{self.field} comes to {len(self.text)} characters, at most {limit} are read{read}: "
                f"send a smaller one{remedy}",
                field=self.field,
            )
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"{self.field} is not valid Unicode: {error}", field=self.field) from error

    @classmethod
    def choice(cls, options: Sequence[str], field: str) -> Constraint:
        """One of several texts."""
        return cls(ConstraintKind.LARK, f"start: {' | '.join(map(lark_literal, options))}", field)

    def refusal(self, reason: str) -> InvalidRequest:
        """That no answer can be bound to it."""
        return InvalidRequest(f"{self.field} cannot be followed: {reason}", field=self.field)


def lark_literal(text: str) -> str:
    """A text as Lark writes it in a rule."""
    return json.dumps(text, ensure_ascii=False)
