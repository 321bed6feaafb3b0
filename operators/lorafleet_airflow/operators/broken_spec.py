"""The task that stands in for a spec that could not be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import BaseOperator


class BrokenSpecOperator(BaseOperator):
    """
    Fails, naming what is wrong with a spec file.

    :param error: file, key and remedy, in one line.
    """

    template_fields: Sequence[str] = ()
    ui_color = "#fce8e6"

    def __init__(self, *, error: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.error = error

    def execute(self, context: Mapping[str, Any]) -> NoReturn:
        """Fail at once."""
        raise AirflowFailException(self.error)
