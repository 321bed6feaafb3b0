"""Settings of the pod: from flags, else `LORAFLEET_*` variables, else the defaults of the classes here.

Secrets come from variables alone, since flags show in the process list. Read once, at start.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lorafleet_contract.registry import RegistryEndpoint, holds_credentials
from lorafleet_serving.adapters.eviction import EvictionPolicy
from lorafleet_serving.engine.config import EngineConfig
from lorafleet_serving.exceptions import InvalidSetting

GIB = 1 << 30
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True)
class FetcherConfig:
    """Settings of the fetcher process. Credentials of S3 come from the usual AWS variables."""

    cache_dir: Path
    s3_endpoint: str | None = None
    """None is AWS itself."""
    s3_buckets: tuple[str, ...] = ()
    """Buckets that adapters are read from; empty allows all that the credentials do."""
    local_roots: tuple[Path, ...] = ()
    """Folders of this machine that adapters are read from, at any depth; empty reads none."""
    registry: RegistryEndpoint | None = None
    """The MLflow server through which artifacts are read that it serves itself."""
    disk_bytes: int = 20 * GIB
    max_adapter_bytes: int = 2 * GIB
    fetch_concurrency: int = 4
    fetch_limit_s: float = 600.0
    """Longest time that one file may take from S3."""
    max_rank: int = 256
    """Highest adapter rank that is served."""
    gate_key: str | None = field(default=None, repr=False)
    """Key that gate reports are signed with."""

    def __post_init__(self) -> None:
        _check("disk_bytes", self.disk_bytes, self.disk_bytes >= 1 << 20, "at least 1 MiB")
        _check("max_adapter_bytes", self.max_adapter_bytes, self.max_adapter_bytes >= 1, "at least 1")
        if self.max_adapter_bytes > self.disk_bytes:
            raise InvalidSetting(
                f"max_adapter_bytes is {self.max_adapter_bytes}, above disk_bytes {self.disk_bytes}: "
                "lower the first or raise the second"
            )
        _check("fetch_concurrency", self.fetch_concurrency, 1 <= self.fetch_concurrency <= 64, "between 1 and 64")
        _check("fetch_limit_s", self.fetch_limit_s, self.fetch_limit_s > 0, "above 0")
        _check("max_rank", self.max_rank, self.max_rank >= 1, "at least 1")
        endpoint = self.s3_endpoint
        _check("s3_endpoint", endpoint, endpoint is None or _is_url(endpoint), "an http:// or https:// address")
        names = self.s3_buckets
        _check("s3_buckets", names, all(map(_BUCKET.fullmatch, names)), "names of buckets, separated by commas")
        roots = self.local_roots
        are_folders = all(root.is_absolute() and root.is_dir() for root in roots)
        _check("local_roots", [str(root) for root in roots], are_folders, "absolute paths of folders, with commas")


@dataclass(frozen=True)
class PodConfig:
    """Everything the pod is told at start."""

    engine: EngineConfig
    fetcher: FetcherConfig
    host: str = "127.0.0.1"
    port: int = 8000
    served_name: str = ""
    """Public id of the base model; the name of its folder unless set."""
    pod_id: str = ""
    """Name of this replica in reports; host name and port unless set."""
    registry: RegistryEndpoint | None = None
    """None serves the base model alone."""
    poll_interval_s: float = 2.0
    max_waiting: int = 256
    api_keys: Path | None = None
    """File of the keys that callers must show; None asks for none, and all callers are one tenant."""
    smoke_tokens: int = 4
    drain_limit_s: float = 30.0
    refusal_recheck_s: float = 30.0
    """How often the files of a refused version are looked at for a change."""
    silence_limit_s: float = 15.0
    """An engine or fetcher process that gives no sign of life for so long is frozen and is replaced."""
    max_body_bytes: int = 4 << 20
    """Longest body of a request that is read."""
    max_merged_adapters: int = 16
    """Adapters merged for callers that are held at a time, in the host tier beside those of the registry."""
    host_eviction: EvictionPolicy = EvictionPolicy.LRU
    """Which adapter leaves the host tier for another."""
    room_limit_s: float = 30.0
    """How long an adapter waits for room in the host tier while all that is there is in use."""
    canary_window_s: float = 300.0
    """How far back answers are compared while a canary is on."""
    merged_idle_s: float = 600.0
    """How long a merged adapter is held after the last request for it."""
    metric_adapters: int = 100
    """Adapters that have metrics of their own, the busiest; those of all others are summed up."""
    admin_token: str | None = field(default=None, repr=False)
    webhook_secret: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not (self.engine.model / "config.json").is_file():
            raise InvalidSetting(
                f"model folder {self.engine.model} holds no config.json: give the folder of the base model with --model"
            )
        _check("port", self.port, 0 <= self.port <= 65535, "between 0 and 65535")
        _check("poll_interval_s", self.poll_interval_s, 0.05 <= self.poll_interval_s <= 3600, "between 0.05 and 3600")
        _check("max_waiting", self.max_waiting, self.max_waiting >= 1, "at least 1")
        _check("smoke_tokens", self.smoke_tokens, 1 <= self.smoke_tokens <= 8, "between 1 and 8")
        _check("drain_limit_s", self.drain_limit_s, self.drain_limit_s >= 0, "at least 0")
        _check("refusal_recheck_s", self.refusal_recheck_s, self.refusal_recheck_s > 0, "above 0")
        _check("silence_limit_s", self.silence_limit_s, 2 <= self.silence_limit_s <= 3600, "between 2 and 3600")
        _check("max_body_bytes", self.max_body_bytes, self.max_body_bytes >= 1024, "at least 1024")
        _check("max_merged_adapters", self.max_merged_adapters, self.max_merged_adapters >= 1, "at least 1")
        _check("room_limit_s", self.room_limit_s, self.room_limit_s >= 0, "at least 0")
        _check("canary_window_s", self.canary_window_s, 1 <= self.canary_window_s <= 86400, "between 1 and 86400")
        _check("merged_idle_s", self.merged_idle_s, self.merged_idle_s > 0, "above 0")
        _check("metric_adapters", self.metric_adapters, 1 <= self.metric_adapters <= 10_000, "between 1 and 10000")
        if self.registry is not None:
            _check("registry_url", self.registry.url, _is_url(self.registry.url), "an http:// or https:// address")
            if not self.fetcher.gate_key:
                raise InvalidSetting(
                    "gate_key is not set, so no adapter of the registry could be verified: "
                    "set LORAFLEET_GATE_KEY to the key of the pipeline"
                )
        _check("served_name", self.base_id, self.base_id.isascii() and self.base_id.isprintable(), "printable ASCII")

    @property
    def base_id(self) -> str:
        """Id of the base model in requests and answers."""
        return self.served_name or self.engine.model.resolve().name

    @property
    def replica_id(self) -> str:
        """Name of this pod in its reports."""
        return self.pod_id or f"{platform.node()}:{self.port}"

    @property
    def own_folder(self) -> Path:
        """What this pod alone uses in the folder of the disk tier. It has its name: so it is found after a restart."""
        return self.fetcher.cache_dir / "pods" / f"pod-{quote(self.replica_id, safe='')}"


@dataclass(frozen=True)
class _Setting:
    """One setting that a flag or a variable gives."""

    owner: type
    name: str
    parse: Callable[[str], Any]
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.removesuffix("_s").replace("_", "-")

    @property
    def variable(self) -> str:
        return "LORAFLEET_" + self.name.upper()

    @property
    def default(self) -> object:
        found = next(item for item in fields(self.owner) if item.name == self.name)
        return None if found.default is MISSING else found.default


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _paths(text: str) -> tuple[Path, ...]:
    return tuple(map(Path, _names(text)))


_SETTINGS = (
    _Setting(PodConfig, "host", str, "address to listen on"),
    _Setting(PodConfig, "port", int, "port to listen on; 0 takes a free one"),
    _Setting(PodConfig, "served_name", str, "public id of the base model; its folder's name unless set"),
    _Setting(PodConfig, "pod_id", str, "name of this replica; host name and port unless set"),
    _Setting(PodConfig, "poll_interval_s", float, "seconds between looks at the registry"),
    _Setting(FetcherConfig, "max_rank", int, "highest adapter rank that is served"),
    _Setting(PodConfig, "api_keys", Path, "file of the keys that callers must show; unset asks for none"),
    _Setting(PodConfig, "max_waiting", int, "requests that may wait before 429 is answered"),
    _Setting(PodConfig, "smoke_tokens", int, "tokens of the smoke test of a new version, at most 8"),
    _Setting(PodConfig, "drain_limit_s", float, "seconds that running requests get after SIGTERM"),
    _Setting(PodConfig, "refusal_recheck_s", float, "seconds between looks at the files of a refused version"),
    _Setting(PodConfig, "silence_limit_s", float, "seconds without a sign of life before a process is replaced"),
    _Setting(PodConfig, "max_body_bytes", int, "longest body of a request"),
    _Setting(PodConfig, "max_merged_adapters", int, "merged adapters that are held at a time"),
    _Setting(PodConfig, "host_eviction", EvictionPolicy, "which adapter leaves the host tier first: lru, lfu or gdsf"),
    _Setting(PodConfig, "room_limit_s", float, "seconds that an adapter waits for room in the host tier"),
    _Setting(PodConfig, "canary_window_s", float, "seconds over which a canary's answers are compared"),
    _Setting(PodConfig, "merged_idle_s", float, "seconds that a merged adapter is held unused"),
    _Setting(PodConfig, "metric_adapters", int, "adapters with metrics of their own, the busiest"),
    _Setting(FetcherConfig, "cache_dir", Path, "folder of the disk tier, which pods of one node may share"),
    _Setting(FetcherConfig, "s3_endpoint", str, "address of the S3 service; AWS unless set"),
    _Setting(FetcherConfig, "s3_buckets", _names, "buckets that adapters are read from, with commas; unset is any"),
    _Setting(FetcherConfig, "local_roots", _paths, "folders that adapters are read from, with commas; unset is none"),
    _Setting(
        FetcherConfig, "disk_bytes", int, "byte budget of the disk tier; the smallest of the pods that share it counts"
    ),
    _Setting(FetcherConfig, "max_adapter_bytes", int, "largest weights file that is downloaded"),
    _Setting(FetcherConfig, "fetch_concurrency", int, "downloads at a time"),
    _Setting(FetcherConfig, "fetch_limit_s", float, "longest time that one file may take from S3, in seconds"),
    _Setting(EngineConfig, "device", str, "device of the engine: cpu or cuda"),
    _Setting(EngineConfig, "dtype", str, "number format of the base model, or auto"),
    _Setting(EngineConfig, "weights", str, "form of the base model's weights: model, int8, int4 or nf4"),
    _Setting(EngineConfig, "max_num_seqs", int, "sequences in one batch"),
    _Setting(EngineConfig, "max_batched_tokens", int, "token budget of one step"),
    _Setting(EngineConfig, "max_step_stretch", float, "times as long a step may last for the prompts in it"),
    _Setting(EngineConfig, "adapter_turn_steps", int, "steps that an adapter has on the device while others wait"),
    _Setting(EngineConfig, "fairness_slack", int, "tokens by which others may be ahead of one that waits"),
    _Setting(EngineConfig, "priority_head_start", int, "tokens that a level of priority is worth"),
    _Setting(EngineConfig, "speculative_tokens", int, "tokens guessed ahead by prompt lookup, at most 7"),
    _Setting(EngineConfig, "block_size", int, "tokens in a KV block"),
    _Setting(EngineConfig, "kv_cache_bytes", int, "size of the KV cache"),
    _Setting(EngineConfig, "max_model_len", int, "longest sequence, prompt and answer together"),
    _Setting(EngineConfig, "adapter_device_bytes", int, "byte budget of adapters on the device"),
    _Setting(EngineConfig, "adapter_host_bytes", int, "byte budget of adapters in host memory"),
    _Setting(EngineConfig, "step_limit_s", float, "seconds of one step before the engine counts as hung"),
    _Setting(EngineConfig, "num_threads", int, "threads of the computation"),
)


def read_config(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> PodConfig:
    """Read the settings from flags and variables.

    Raises:
        InvalidSetting: one has a bad value or is missing.
    """
    options = vars(_parser().parse_args(arguments))
    given: dict[type, dict[str, Any]] = {PodConfig: {}, FetcherConfig: {}, EngineConfig: {}}
    for setting in _SETTINGS:
        text = options[setting.name] if options[setting.name] is not None else environment.get(setting.variable)
        if text:
            given[setting.owner][setting.name] = _parse(setting, text)
    model = options["model"] or environment.get("LORAFLEET_BASE_MODEL")
    if not model:
        raise InvalidSetting("model is not set: give the folder of the base model with --model or LORAFLEET_BASE_MODEL")
    home = Path(environment.get("LORAFLEET_HOME") or Path.home() / ".lorafleet")
    given[FetcherConfig].setdefault("cache_dir", home / "cache")
    registry, gate_key = _registry(options["registry_url"], environment), environment.get("LORAFLEET_GATE_KEY") or None
    return PodConfig(
        engine=EngineConfig(model=Path(model), **given[EngineConfig]),
        fetcher=FetcherConfig(gate_key=gate_key, registry=registry, **given[FetcherConfig]),
        registry=registry,
        admin_token=environment.get("LORAFLEET_ADMIN_TOKEN") or None,
        webhook_secret=environment.get("LORAFLEET_WEBHOOK_SECRET") or None,
        **given[PodConfig],
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lorafleet_serving",
        description="Serve a base model and the LoRA adapters of a registry. Flags are LORAFLEET_* variables too.",
        epilog="Secrets are variables only: LORAFLEET_ADMIN_TOKEN, LORAFLEET_GATE_KEY, LORAFLEET_WEBHOOK_SECRET.",
    )
    parser.add_argument("--model", help="folder of the base model (LORAFLEET_BASE_MODEL)")
    parser.add_argument("--registry-url", help="address of MLflow (LORAFLEET_MLFLOW_URL); unset serves the base alone")
    for setting in _SETTINGS:
        default = "" if setting.default in (None, "", ()) else f" (default {setting.default})"
        parser.add_argument(setting.flag, dest=setting.name, help=setting.help + default)
    return parser


def _parse(setting: _Setting, text: str) -> object:
    try:
        return setting.parse(text)
    except ValueError as error:
        raise InvalidSetting(
            f"{setting.name} is {text!r}, it must be of type {setting.parse.__name__}: "
            f"set {setting.flag} or {setting.variable}"
        ) from error


def _registry(flag: str | None, environment: Mapping[str, str]) -> RegistryEndpoint | None:
    url = flag or environment.get("LORAFLEET_MLFLOW_URL")
    if not url:
        return None
    if holds_credentials(url):
        raise InvalidSetting(
            "registry_url holds a user or password: leave them out of --registry-url or LORAFLEET_MLFLOW_URL, and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return RegistryEndpoint(
        url=url,
        username=environment.get("MLFLOW_TRACKING_USERNAME"),
        password=environment.get("MLFLOW_TRACKING_PASSWORD"),
        token=environment.get("MLFLOW_TRACKING_TOKEN"),
    )


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _check(name: str, value: object, valid: bool, limit: str) -> None:
    if not valid:
        raise InvalidSetting(f"{name} is {value!r}, it must be {limit}: set LORAFLEET_{name.upper()} or its flag")
