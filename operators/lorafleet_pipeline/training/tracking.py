"""The MLflow run of a pipeline run: made once, found again by its tags after a restart.

A registry that is away for a while does not stop training: metrics wait here until it answers again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from lorafleet_contract.tags import Tag
from lorafleet_pipeline.exceptions import TrackingUnavailable, TrainingCancelled

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

logger = logging.getLogger(__name__)

ATTEMPT_TAG = "pipeline.attempt"
"""Tells a forced second training apart from a resumed first one."""

_FLUSH_EVERY_S = 2.0
_PATIENCE_S = 60.0
_SYSTEM_METRICS_EVERY_S = 5.0
_METRICS_PER_CALL = 1000

T = TypeVar("T")


def experiment_name(adapter: str) -> str:
    """Name of an adapter's MLflow experiment."""
    return f"lorafleet/{adapter}"


class Tracking(AbstractContextManager["Tracking"]):
    """One MLflow run with system metrics. Leaving it ends the run as finished, or as failed after an error."""

    def __init__(self, url: str, adapter: str, run_key: str, attempt: str) -> None:
        self._url = url
        self._client = _client(url)
        self._tags = {Tag.RUN_KEY.value: run_key, ATTEMPT_TAG: attempt}
        self._waiting: list[Metric] = []
        self._next_flush = 0.0
        self.run_id: str = self._patiently("make the run", lambda: self._find_or_create(experiment_name(adapter)))

    def log_facts(self, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """Record parameters and tags. Parameters of a resumed run must not have changed."""
        from mlflow.entities import Param, RunTag

        entries = [Param(key, str(value)) for key, value in params.items()]
        run_tags = [RunTag(key, value) for key, value in tags.items()]
        self._patiently("log parameters", lambda: self._client.log_batch(self.run_id, params=entries, tags=run_tags))

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record metrics; they are sent every few seconds."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._waiting += [Metric(key, value, now_ms, step) for key, value in values.items()]
        if time.monotonic() >= self._next_flush:
            self._try_flush()

    def __enter__(self) -> Self:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(
            self.run_id, sampling_interval=_SYSTEM_METRICS_EVERY_S, resume_logging=True, tracking_uri=self._url
        )
        self._monitor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._monitor.finish()
        status = "FINISHED" if error is None else "KILLED" if isinstance(error, TrainingCancelled) else "FAILED"
        try:
            self._patiently("send the last metrics", self._flush)
            self._patiently("end the run", lambda: self._client.set_terminated(self.run_id, status))
        except TrackingUnavailable as failure:
            if error is None:
                raise
            logger.error("%s", failure)  # The error that is under way says more.

    def _find_or_create(self, experiment: str) -> str:
        experiment_id = self._experiment_id(experiment)
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in self._tags.items())
        found = self._client.search_runs([experiment_id], filter_string=wanted, max_results=1)
        if found:
            run_id: str = found[0].info.run_id
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        made = self._client.create_run(experiment_id, tags=self._tags, run_name=self._tags[Tag.RUN_KEY.value])
        return str(made.info.run_id)

    def _experiment_id(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        known = self._client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self._client.get_experiment_by_name(name).experiment_id)

    def _flush(self) -> None:
        while self._waiting:
            self._client.log_batch(self.run_id, metrics=self._waiting[:_METRICS_PER_CALL])
            del self._waiting[:_METRICS_PER_CALL]

    def _try_flush(self) -> None:
        from mlflow.exceptions import MlflowException

        self._next_flush = time.monotonic() + _FLUSH_EVERY_S
        try:
            self._flush()
        except MlflowException as error:
            logger.warning("MLflow at %s does not take metrics, %d wait: %s", self._url, len(self._waiting), error)
            self._next_flush = time.monotonic() + 5 * _FLUSH_EVERY_S

    def _patiently(self, what: str, call: Callable[[], T]) -> T:
        return _patiently(self._url, what, call)


def log_final_metrics(url: str, run_id: str, values: Mapping[str, float]) -> None:
    """Record metrics of a run that has ended.

    Raises:
        TrackingUnavailable: MLflow does not take them.
    """
    client = _client(url)
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    metrics = [Metric(key, value, now_ms, 0) for key, value in values.items()]
    _patiently(url, "log metrics", lambda: client.log_batch(run_id, metrics=metrics))


def _client(url: str) -> MlflowClient:
    # MLflow's own retries would hold up the caller for minutes; this module has its own patience.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return MlflowClient(url)


def _patiently(url: str, what: str, call: Callable[[], T]) -> T:
    from mlflow.exceptions import MlflowException

    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return call()
        except MlflowException as error:
            if not _may_pass(error) or time.monotonic() >= deadline:
                raise TrackingUnavailable(
                    f"MLflow at {url} refused to {what} ({' '.join(str(error).split())[:200]}): start it, or correct "
                    "LORAFLEET_MLFLOW_URL; the next try goes on from where this one stopped"
                ) from error
            logger.warning("MLflow at %s does not answer yet: %s", url, error)
            time.sleep(1.0)


def _may_pass(error: Any) -> bool:
    """Whether another try may succeed: no connection, or a server in trouble."""
    return error.error_code in {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}
