"""Errors of the serving pod.

ServingError
  + InvalidSetting       a setting of the pod is wrong; it does not start
  + InvalidRequest       a request's field breaks a rule (also a ValueError)
      + PromptTooLong        a prompt leaves no room for an answer in the model's context
      + CannotLoad           an adapter that is to be loaded by hand lacks something, is there already or is wrong
  + UnsupportedModel     the base model's architecture or an option of it is not served
  + AdapterRefusal       an adapter's contents are wrong or not served
      + AdapterTooLarge      an adapter is larger than a whole tier
  + NoRoom               a tier is full of other adapters, which may pass
  + GenerationFailed     the engine gave up on a sequence
  + DeadlineExceeded     a request was not answered within the time that it allows
  + ClientGone           a request's client has left before it was answered
  + BodyTooLong          a request's body is longer than the pod reads
  + UnknownAdapter       a request names an adapter or version that the pod does not know
  + NameTaken            a name that is to be loaded by hand belongs to the registry or to the base model
  + AdapterWithdrawn     a request names a version that was withdrawn
  + AdapterNotReady      a request names a version that is not loaded, or was refused
  + Unauthorized         credentials are missing or wrong
  + Forbidden            the caller may not do this, or it is switched off
  + TryLater             what is asked for is possible again after a time that is known
      + QueueFull            too many requests wait already
      + QuotaExceeded        a key has had what it may have in a minute
  + PodUnavailable       the pod cannot answer now: draining, starting, or its engine is down
      + AnswerLost           the engine died while it answered
  + FetchFailed          an adapter could not be downloaded, for a reason that may pass
      + FilesGone            an adapter's files left the disk tier before they were read
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
    """Raised when an adapter's contents are wrong, hostile or unsupported; `stamp` tells its files from later ones."""

    def __init__(self, reason: str, stamp: str | None = None) -> None:
        super().__init__(reason)
        self.stamp = stamp


class AdapterTooLarge(AdapterRefusal):
    """Raised when an adapter is larger than a whole tier, so that it can never be served with these settings."""


class NoRoom(ServingError):
    """Raised when a tier has no room for an adapter beside those that are wanted; worth another try."""


class GenerationFailed(ServingError):
    """Raised when the engine gives up on a sequence, in an offline batch as in the pod."""


class DeadlineExceeded(ServingError):
    """Raised when a request was not answered within the time that it allows."""


class ClientGone(ServingError):
    """Raised when a request's client has left before it was answered."""


class BodyTooLong(ServingError):
    """Raised when a request's body is longer than the pod reads."""


class PromptTooLong(InvalidRequest):
    """Raised when a prompt leaves no room for an answer in the model's context."""


class CannotLoad(InvalidRequest):
    """Raised when an adapter cannot be loaded by hand: a field is missing or wrong, it is there, or it is refused."""


class NameTaken(ServingError):
    """Raised when a name cannot be loaded or unloaded by hand, since it belongs to the registry or the base model."""


class UnknownAdapter(ServingError):
    """Raised when a request names an adapter, alias or version that the pod does not know."""


class AdapterInUse(ServingError):
    """Raised when an adapter cannot leave memory, since requests use it or it is pinned."""


class AdapterWithdrawn(ServingError):
    """Raised when a request names a version that was withdrawn from service."""


class AdapterNotReady(ServingError):
    """Raised when a request names a version that is not loaded yet, or was refused; gives the reason."""


class Unauthorized(ServingError):
    """Raised when credentials are missing or wrong."""


class Forbidden(ServingError):
    """Raised when the caller may not do what it asks for, or the route is switched off."""


class TryLater(ServingError):
    """Base class of what is over after a time that is known, in seconds."""

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(TryLater):
    """Raised when as many requests wait as the pod lets wait; says when to come back."""


class QuotaExceeded(TryLater):
    """Raised when a key has had what it may have in a minute; says when to come back."""


class PodUnavailable(ServingError):
    """Raised when the pod cannot answer now: it drains, starts, or its engine is down."""


class AnswerLost(PodUnavailable):
    """Raised when the engine dies in the middle of an answer; asking again is safe."""


class FetchFailed(ServingError):
    """Raised when an adapter could not be downloaded for a reason that may pass; worth another try."""


class FilesGone(FetchFailed):
    """Raised when an adapter's files left the disk tier between being found and being read; they can be had again."""
