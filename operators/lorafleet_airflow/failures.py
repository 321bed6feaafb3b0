"""Which failures a retry can mend, said to Airflow.

A dataset, spec or gate that is wrong now is wrong at the next try too: those fail at once with their own
one-line message. Whatever may pass (a service that is down, a lost process) goes on to Airflow's retries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.providers.common.compat.sdk import AirflowFailException

from lorafleet_airflow.exceptions import InvalidConnection
from lorafleet_pipeline.exceptions import (
    DatasetError,
    InvalidSetting,
    InvalidSpec,
    ObjectMissing,
    PromotionError,
    PromotionTimeout,
    StorageDenied,
    TrainingDiverged,
)

LASTING = (
    DatasetError,
    InvalidConnection,
    InvalidSetting,
    InvalidSpec,
    ObjectMissing,
    PromotionError,
    StorageDenied,
    TrainingDiverged,
)
"""Errors that another try meets again; a promotion that ran out of time is the exception among promotions."""


@contextmanager
def lasting_errors_fail_at_once() -> Iterator[None]:
    """Turn an error that a retry cannot mend into `AirflowFailException`, keeping its message."""
    try:
        yield
    except PromotionTimeout:
        raise
    except LASTING as error:
        raise AirflowFailException(str(error)) from error
