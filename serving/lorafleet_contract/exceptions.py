"""Errors of the contract package.

ContractError
  + InvalidName          an adapter name or reference cannot be parsed
  + InvalidManifest      a manifest or report lacks a field or has one of the wrong type
  + InvalidTag           a tag that people set holds something of another kind
  + InvalidTemplate      a prompt template cannot be parsed, or a variable is missing
  + SignatureInvalid     a signed document does not verify against the shared key
  + RegistryError        the registry answered with an error
      + RegistryNotFound     the model, version or alias does not exist
      + RegistryUnavailable  the registry cannot be reached
"""

from __future__ import annotations


class ContractError(Exception):
    """Base class of every error raised by `lorafleet_contract`."""


class InvalidName(ContractError, ValueError):
    """Raised when an adapter name or reference does not follow the naming rule."""


class InvalidManifest(ContractError, ValueError):
    """Raised when a manifest or report lacks a field or holds one of the wrong type."""


class InvalidTag(ContractError, ValueError):
    """Raised when a tag that people set cannot be read as what it is for; names the tag, the value and the limit."""


class InvalidTemplate(ContractError, ValueError):
    """Raised when a prompt template cannot be parsed or a variable of it has no value."""


class SignatureInvalid(ContractError):
    """Raised when a signed document does not verify against the shared key."""


class RegistryError(ContractError):
    """Raised when the registry answers a call with an error."""


class RegistryNotFound(RegistryError, KeyError):
    """Raised when the registered model, version or alias does not exist."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class RegistryUnavailable(RegistryError, ConnectionError):
    """Raised when the registry cannot be reached or does not answer in time."""
