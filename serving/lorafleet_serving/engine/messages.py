"""Messages between the front process and the engine process.

Each is a frozen dataclass; the pipe between the two processes is private to the pod and carries
them pickled. The front sends commands, the engine answers with events.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lorafleet_serving.adapters.tier_counts import TierCounts
from lorafleet_serving.engine.request import GenerationRequest, TokenOutput
from lorafleet_serving.engine.scored_prompt import ScoredPrompt
from lorafleet_serving.exceptions import AdapterRefusal, FetchFailed, NoRoom


@dataclass(frozen=True)
class Generate:
    """Add a request to the batch."""

    request: GenerationRequest


@dataclass(frozen=True)
class Abort:
    """Stop a request and free what it holds; unknown ids are ignored, since the end may have crossed it."""

    request_id: str


@dataclass(frozen=True)
class LoadAdapter:
    """Map a verified adapter folder into host memory and make it usable under its digest."""

    digest: str
    folder: str


@dataclass(frozen=True)
class UnloadAdapter:
    """Drop an adapter from device and host once no request uses it."""

    digest: str


@dataclass(frozen=True)
class Shutdown:
    """Finish the running step and exit."""


EngineCommand = Generate | Abort | LoadAdapter | UnloadAdapter | Shutdown


@dataclass(frozen=True)
class EngineReady:
    """The engine has loaded its base model and takes requests."""

    base_digest: str
    num_kv_blocks: int
    block_size: int
    max_model_len: int
    """Longest sequence, prompt and answer together, in tokens."""
    hidden_size: int
    """Width of the vectors that requests with pooling get."""
    item_bytes: int
    """Bytes of a number in an adapter's tensors."""


@dataclass(frozen=True)
class EngineFailed:
    """The base model cannot be served at all; the process ends."""

    reason: str


@dataclass(frozen=True)
class PromptPart:
    """What a step read of a prompt whose end it did not reach; the last part comes with the request's first output."""

    request_id: str
    scores: ScoredPrompt


@dataclass(frozen=True)
class Tokens:
    """What one step produced."""

    outputs: tuple[TokenOutput, ...]
    prompt_parts: tuple[PromptPart, ...] = ()


@dataclass(frozen=True)
class AdapterLoaded:
    """An adapter is in host memory and can be asked."""

    digest: str
    num_bytes: int


@dataclass(frozen=True)
class AdapterRefused:
    """An adapter was not loaded: it must not be, or it cannot be now."""

    digest: str
    error: AdapterRefusal | NoRoom | FetchFailed


@dataclass(frozen=True)
class AdapterUnloaded:
    """An adapter has left host and device."""

    digest: str


@dataclass(frozen=True)
class EngineStats:
    """State of the engine after a step, at most a few times a second."""

    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_kv_blocks: int
    device_adapters: tuple[str, ...]
    host_adapters: tuple[str, ...]
    num_steps: int
    num_preemptions: int = 0
    """Sequences that gave back their blocks and were computed again, or will be."""
    num_adapter_pauses: int = 0
    """Times that an adapter of the batch had to leave the device for another."""
    device_bytes: int = 0
    """Of the adapters on the device."""
    device_counts: TierCounts = field(default_factory=TierCounts)
    """What the device tier has done since the process began."""


EngineEvent = EngineReady | EngineFailed | Tokens | AdapterLoaded | AdapterRefused | AdapterUnloaded | EngineStats
