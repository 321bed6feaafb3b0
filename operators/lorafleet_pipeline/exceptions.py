"""Errors of the pipeline.

PipelineError                 base: its message is one line, for a person, with the remedy
  + InvalidSetting            a LORAFLEET_* variable or setting is missing or wrong
  + InvalidSpec               an AdapterSpec is wrong: unknown key, wrong type, bad template
  + StorageError              an address cannot be read or written
      + ObjectMissing         nothing is at the address
      + StorageDenied         the credentials are wrong or do not suffice
      + StorageUnreachable    the endpoint does not answer
  + BaseModelUnavailable      the base model cannot be found or fetched
  + DatasetError              a dataset cannot be used
      + DatasetUnreadable     a file cannot be parsed, or a split is empty or lacks a column
      + DatasetRefused        validation found a critical failure
  + TrainingError             training failed
      + TrainingDiverged      the loss became non-finite
      + TrainingLost          the training process died without a result
      + TrainingCancelled     someone cancelled it
  + EvaluationError           evaluation failed
  + TrackingUnavailable       MLflow does not take a run's parameters or metrics
  + GateReportInvalid         a gate report lacks a field or has one of the wrong type
  + RegistrationError         a version could not be registered whole
  + PromotionError            a promotion or rollback is not possible
      + GateRefused           the version's gate did not pass
      + PromotionTimeout      not every pod took the version in time
  + WebhookRefused            MLflow has no webhooks, or does not take one
  + StackError                the embedded stack could not be started, stopped or read
  + DemoError                 the demo could not go on; names the component
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base class of every error raised by `lorafleet_pipeline`; the message is one line for a person."""


class InvalidSetting(PipelineError, ValueError):
    """Raised when a setting is missing or wrong; names it and the remedy."""


class InvalidSpec(PipelineError, ValueError):
    """Raised when an AdapterSpec is wrong; names the file, the key and the remedy."""


class StorageError(PipelineError):
    """Raised when an address cannot be read or written."""


class ObjectMissing(StorageError, FileNotFoundError):
    """Raised when nothing is at an address."""


class StorageDenied(StorageError, PermissionError):
    """Raised when the credentials are wrong or do not suffice."""


class StorageUnreachable(StorageError, ConnectionError):
    """Raised when the storage endpoint does not answer."""


class BaseModelUnavailable(PipelineError):
    """Raised when a base model cannot be found or fetched."""


class DatasetError(PipelineError):
    """Base class of errors that lie in a dataset."""


class DatasetUnreadable(DatasetError):
    """Raised when a file cannot be parsed, a split is empty, or a column is missing."""


class DatasetRefused(DatasetError):
    """Raised when validation found a critical failure; names the expectation, never row values."""


class TrainingError(PipelineError):
    """Base class of training failures."""


class TrainingDiverged(TrainingError):
    """Raised when the loss became non-finite; names the step."""


class TrainingLost(TrainingError):
    """Raised when the training process ended without leaving a result."""


class TrainingCancelled(TrainingError):
    """Raised when a person or the platform cancelled the training."""


class EvaluationError(PipelineError):
    """Raised when an evaluation could not be completed."""


class TrackingUnavailable(PipelineError):
    """Raised when MLflow does not take a run's parameters or metrics for a minute."""


class GateReportInvalid(PipelineError, ValueError):
    """Raised when a gate report lacks a field or has one of the wrong type."""


class RegistrationError(PipelineError):
    """Raised when a version could not be registered whole; nothing half-registered is left."""


class PromotionError(PipelineError):
    """Raised when a promotion or rollback is not possible."""


class GateRefused(PromotionError):
    """Raised when a version's gate did not pass; names the check."""


class PromotionTimeout(PromotionError):
    """Raised when not every pod took a version in time; names the pods and their reasons."""


class WebhookRefused(PipelineError):
    """Raised when MLflow has no webhooks or does not take one of a pod; names the server's setting."""


class StackError(PipelineError):
    """Raised when the embedded stack could not be started, stopped or read."""


class DemoError(PipelineError):
    """Raised when the demo could not go on; names the component and where to look."""
