"""Errors of the serving pod.

ServingError
  + InvalidSetting       a setting of the pod is wrong; it does not start
  + InvalidRequest       a request's field breaks a rule (also a ValueError)
  + UnsupportedModel     the base model's architecture or an option of it is not served
  + AdapterRefusal       an adapter's contents are wrong or not served
  + OutOfBlocks          the KV cache cannot hold a sequence even alone
"""

from __future__ import annotations


class ServingError(Exception):
    """Base class of every error raised by `lorafleet_serving`."""


class InvalidSetting(ServingError, ValueError):
    """Raised at start when a setting has a bad value; names the setting and the remedy."""


class InvalidRequest(ServingError, ValueError):
    """Raised when a field of a request breaks a rule; `field` names it."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class UnsupportedModel(ServingError):
    """Raised at start when the base model cannot be served as it is."""


class AdapterRefusal(ServingError):
    """Raised when an adapter's contents are wrong, hostile or unsupported."""


class OutOfBlocks(ServingError):
    """Raised when the KV cache is too small for a sequence even when it runs alone."""
