"""Which failures are retried."""

from __future__ import annotations

import pytest
from airflow.sdk.exceptions import AirflowFailException

from lorafleet_airflow.failures import lasting_errors_fail_at_once
from lorafleet_pipeline import exceptions
from lorafleet_pipeline.run_identity import run_key

LASTING = ["DatasetRefused", "DatasetUnreadable", "InvalidSpec", "GateRefused", "TrainingDiverged", "StorageDenied"]
PASSING = ["StorageUnreachable", "TrainingLost", "PromotionTimeout", "EvaluationError"]


@pytest.mark.parametrize("name", LASTING)
def test_an_error_that_stays_fails_the_task_at_once_with_its_message(name: str) -> None:
    with pytest.raises(AirflowFailException, match="the cause"), lasting_errors_fail_at_once():
        raise getattr(exceptions, name)("the cause")


@pytest.mark.parametrize("name", PASSING)
def test_an_error_that_may_pass_is_left_to_the_retries(name: str) -> None:
    kind = getattr(exceptions, name)
    with pytest.raises(kind), lasting_errors_fail_at_once():
        raise kind("the cause")


def test_every_try_of_a_run_has_one_key_and_every_run_its_own() -> None:
    first = run_key("adapter_a", "manual__2026-01-01T00:00:00+00:00")
    assert first == run_key("adapter_a", "manual__2026-01-01T00:00:00+00:00")
    others = {run_key("adapter_b", "r"), run_key("adapter_a", "r"), run_key("adapter_a", "r", 0), run_key("x", "r:")}
    assert len(others | {first}) == 5
