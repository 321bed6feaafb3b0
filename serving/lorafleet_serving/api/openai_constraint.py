"""From the fields of the OpenAI dialect, and vLLM's beside them, to what an answer is bound to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lorafleet_serving.api.schemas import AnswerFormat, ConstraintFields, JsonSchemaFormat, TextFormat
from lorafleet_serving.engine.constraint import Constraint, ConstraintKind
from lorafleet_serving.exceptions import InvalidRequest

_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_GBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
"""Keeps to one line: blanks that span lines would be looked through anew from each blank line."""


def constraint_of(body: ConstraintFields) -> Constraint | None:
    """What the answer is bound to; None if it is free.

    Raises:
        InvalidRequest: more than one field binds it, or one is not complete.
    """
    found = [constraint for constraint in (_of_format(body.response_format), *_guided(body)) if constraint is not None]
    if body.structured_outputs is not None:
        found.append(_structured(body))
    if len(found) > 1:
        names = " and ".join(constraint.field for constraint in found)
        raise InvalidRequest(f"{names} bind the answer: send one of them", field=found[1].field)
    return found[0] if found else None


def json_constraint(schema: str | Mapping[str, Any], field: str) -> Constraint:
    """A JSON schema, as an object or as its text.

    Raises:
        InvalidRequest: it is too large.
    """
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
    except RecursionError as error:
        raise InvalidRequest(f"{field} is nested too deeply", field=field) from error
    return Constraint(ConstraintKind.JSON_SCHEMA, text, field)


def _of_format(wanted: AnswerFormat | None) -> Constraint | None:
    if wanted is None or isinstance(wanted, TextFormat):
        return None
    schema = wanted.json_schema.json_schema if isinstance(wanted, JsonSchemaFormat) else None
    return json_constraint(_ANY_OBJECT if schema is None else schema, "response_format")


def _guided(body: ConstraintFields) -> list[Constraint | None]:
    return [
        None if body.guided_json is None else json_constraint(body.guided_json, "guided_json"),
        None if body.guided_regex is None else Constraint(ConstraintKind.REGEX, body.guided_regex, "guided_regex"),
        None if body.guided_choice is None else Constraint.choice(body.guided_choice, "guided_choice"),
        None if body.guided_grammar is None else _grammar(body.guided_grammar, "guided_grammar"),
    ]


def _structured(body: ConstraintFields) -> Constraint:
    field, given = "structured_outputs", body.structured_outputs
    assert given is not None
    found = [
        None if given.json_schema is None else json_constraint(given.json_schema, field),
        None if given.regex is None else Constraint(ConstraintKind.REGEX, given.regex, field),
        None if given.choice is None else Constraint.choice(given.choice, field),
        None if given.grammar is None else _grammar(given.grammar, field),
        json_constraint(_ANY_OBJECT, field) if given.json_object else None,
    ]
    wanted = [constraint for constraint in found if constraint is not None]
    if len(wanted) != 1:
        raise InvalidRequest(
            f"{field} has {len(wanted)} of json, regex, choice, grammar and json_object, it must have one", field=field
        )
    return wanted[0]


def _grammar(text: str, field: str) -> Constraint:
    constraint = Constraint(ConstraintKind.LARK, text, field)
    # Only now is it known to be short enough to be searched.
    return replace(constraint, kind=ConstraintKind.GBNF) if _GBNF_RULE.search(text) else constraint
