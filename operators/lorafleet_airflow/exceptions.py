"""Errors of the Airflow provider.

ProviderError
  + InvalidConnection     an Airflow connection lacks its address, or holds a wrong one
  + PromotionUnconfirmed  a promoted version does not serve as it should on every pod
      + PromotionFaulty     ... because of the version itself, so that going back helps
  + ServingDrifted        pods do not serve what the registry names
BrokenSpecWarning         a spec file cannot become a DAG (a warning, not an error: other specs go on)
"""

from __future__ import annotations


class ProviderError(Exception):
    """Base class of every error raised by `lorafleet_airflow`; the message is one line for a person."""


class InvalidConnection(ProviderError, ValueError):
    """Raised when an Airflow connection lacks its address or holds a wrong one; names the field."""


class PromotionUnconfirmed(ProviderError):
    """Raised when a promoted version could not be seen serving on every pod in time."""


class PromotionFaulty(PromotionUnconfirmed):
    """Raised when the version itself is at fault: refused, not loadable, or its smoke request failed."""

    def __init__(self, message: str, *, version: int) -> None:
        super().__init__(message)
        self.version = version


class ServingDrifted(ProviderError):
    """Raised when pods still do not serve what the registry names after they were told; names each."""


class BrokenSpecWarning(UserWarning):
    """Issued when a spec file cannot become a DAG; names the file and the key."""
