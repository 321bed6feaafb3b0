"""The prompt block of an adapter: its template, variables, stop strings and examples.

Training, evaluation and serving all render through this one function, so that an adapter is asked
in production exactly as it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lorafleet_contract.exceptions import InvalidManifest, InvalidTemplate
from lorafleet_contract.fields import check_field_types

if TYPE_CHECKING:
    from jinja2 import Environment, Template

_MAX_NAMED = 5
"""Unknown variables that an error names; a caller may send any number."""


@dataclass(frozen=True)
class PromptBlock:
    """How to ask an adapter."""

    template: str
    variables: tuple[str, ...]
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 128
    chat: bool = False
    """Whether the rendered prompt is the user's turn of the base model's chat template."""
    category: str = "other"
    examples: tuple[Mapping[str, Any], ...] = field(default=())
    """Two example inputs: one value for each variable."""

    def render(self, values: Mapping[str, Any]) -> str:
        """Fill the template.

        Raises:
            InvalidTemplate: a variable has no value, or a value was sent that the template does not use.
        """
        missing = sorted(set(self.variables) - set(values))
        unknown = sorted(set(values) - set(self.variables))
        if missing or unknown:
            raise InvalidTemplate(
                f"variables do not fit the adapter's template: missing {missing}, unknown {unknown[:_MAX_NAMED]}; "
                f"send exactly {sorted(self.variables)}"
            )
        return render_template(self.template, values)

    def to_json(self) -> dict[str, Any]:
        """The block as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PromptBlock:
        """Read the block back.

        Raises:
            InvalidManifest: a field is missing, unknown or of the wrong type.
        """
        try:
            given = cls(**data)
            block = replace(
                given,
                variables=tuple(given.variables),
                stop=tuple(given.stop),
                examples=tuple(dict(example) for example in given.examples),
            )
            check_field_types(block)
        except (TypeError, ValueError) as error:
            raise InvalidManifest(f"prompt block: {error}") from error
        return block


def render_template(template: str, values: Mapping[str, Any]) -> str:
    """Render a Jinja template in a sandbox.

    Raises:
        InvalidTemplate: it cannot be parsed, names a value that is not there, or does something forbidden.
    """
    from jinja2 import TemplateError

    try:
        return _compiled(template).render(dict(values))
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # Jinja lets through what a filter or operator says about a value that it is not made for.
        raise InvalidTemplate(f"template {template[:60]!r}: {error}") from error


def template_variables(template: str) -> tuple[str, ...]:
    """Names that a template reads, sorted.

    Raises:
        InvalidTemplate: it cannot be parsed.
    """
    from jinja2 import TemplateError, meta

    try:
        return tuple(sorted(meta.find_undeclared_variables(_environment().parse(template))))
    except TemplateError as error:
        raise InvalidTemplate(f"template {template[:60]!r}: {error}") from error


@lru_cache(maxsize=256)
def _compiled(template: str) -> Template:
    # Compiling takes a thousand times longer than rendering, and a dataset renders one template for every row.
    return _environment().from_string(template)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    # Imported here because the contract stays importable with the standard library alone.
    from jinja2 import DictLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # An empty loader: what a template would include does not exist, and is a fault of the template.
    return ImmutableSandboxedEnvironment(loader=DictLoader({}), undefined=StrictUndefined, keep_trailing_newline=True)
