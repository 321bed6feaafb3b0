"""Registers adapter versions by hand: artifacts to S3, version and tags to MLflow, as the pipeline does.

Each argument that a test changes makes a version wrong in exactly one way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lorafleet_contract.aliases import Alias, Stage
from lorafleet_contract.digest import CONFIG_FILE, WEIGHTS_FILE, adapter_digest, base_digest
from lorafleet_contract.exceptions import RegistryNotFound
from lorafleet_contract.manifest import ADAPTER_FOLDER, GATE_REPORT_FILE, MANIFEST_FILE, AdapterManifest
from lorafleet_contract.prompt import PromptBlock
from lorafleet_contract.registry import RegistryClient, RegistryEndpoint
from lorafleet_contract.signature import sign
from lorafleet_contract.tags import Tag
from tests.services import RunningMLflow

GATE_KEY = "gate-key-of-the-tests"

PROMPT = PromptBlock(
    template="Q: {{ question }}\nA:",
    variables=("question",),
    stop=("\n\n",),
    max_new_tokens=6,
    examples=({"question": "the cat"}, {"question": "the dog"}),
)


@dataclass(frozen=True)
class AdapterSource:
    """What a version is made from."""

    model: Path
    folder: Path
    prompt: PromptBlock = PROMPT
    chat_template: str | None = None
    rank: int = 4
    base_digest: str | None = None
    """Of another base than `model`, where set."""
    gate_key: str = GATE_KEY
    report: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the gate report that differ from a passed one."""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Registered:
    """A registered version."""

    name: str
    version: int
    digest: str
    address: str

    @property
    def label(self) -> str:
        return f"{self.name}:{self.version}"


class RegistryHand:
    """Writes to one registry and its S3."""

    def __init__(self, mlflow: RunningMLflow, endpoint: RegistryEndpoint | None = None) -> None:
        self.mlflow = mlflow
        self.client = RegistryClient(endpoint or RegistryEndpoint(mlflow.url))

    def register(self, name: str, source: AdapterSource, source_override: str | None = None) -> Registered:
        """Upload a version's artifacts and register it, without any alias; the registry may be told another place."""
        digest = adapter_digest(source.folder)
        manifest = _manifest(name, digest, source)
        report: dict[str, object] = {"adapter": name, "digest": digest, "manifest_digest": manifest.manifest_digest}
        report |= {"status": "passed", "reason": "", "waived_by": None, **source.report}
        address = f"s3://mlflow/by-hand/{name}/{_next_version(self.client, name)}"
        self.upload(f"{address}/{MANIFEST_FILE}", json.dumps(manifest.to_json()).encode())
        self.upload(f"{address}/{GATE_REPORT_FILE}", json.dumps(sign(report, source.gate_key)).encode())
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            self.upload(f"{address}/{ADAPTER_FOLDER}/{file}", (source.folder / file).read_bytes())
        tags = {Tag.LORA_DIGEST: digest, Tag.LORA_BASE_DIGEST: manifest.base_digest, Tag.GATE_STATUS: "passed"}
        version = self.create(
            name, source_override or address, {**{tag.value: text for tag, text in tags.items()}, **source.tags}
        )
        return Registered(name, version, digest, address)

    def promote(self, registered: Registered, alias: str = "champion") -> None:
        """Move an alias to a version."""
        self.client.set_alias(registered.name, alias, registered.version)

    def unregister(self, registered: Registered) -> None:
        """Delete a version from the registry."""
        body = {"name": registered.name, "version": str(registered.version)}
        self.client.call("DELETE", "model-versions/delete", body=body)

    def withdraw(self, registered: Registered) -> None:
        """Archive a version, and do what the controller does then."""
        self.client.set_alias(registered.name, Alias.LIVE, registered.version)
        self.client.transition_stage(registered.name, registered.version, Stage.ARCHIVED)
        self.client.delete_alias(registered.name, Alias.CHAMPION)

    def upload(self, address: str, data: bytes) -> None:
        """Write one object."""
        place = urlparse(address)
        self.mlflow.s3.client().put_object(Bucket=place.netloc, Key=place.path.lstrip("/"), Body=data)

    def download(self, address: str) -> bytes:
        """Read one object."""
        place = urlparse(address)
        answer = self.mlflow.s3.client().get_object(Bucket=place.netloc, Key=place.path.lstrip("/"))
        return answer["Body"].read()

    def delete(self, address: str) -> None:
        """Delete one object."""
        place = urlparse(address)
        self.mlflow.s3.client().delete_object(Bucket=place.netloc, Key=place.path.lstrip("/"))

    def create(self, name: str, address: str, tags: Mapping[str, str]) -> int:
        """Register a version whose artifacts are at an address; returns its number."""
        if not _exists(self.client, name):
            self.client.call("POST", "registered-models/create", body={"name": name})
        pairs = [{"key": key, "value": value} for key, value in tags.items()]
        body = {"name": name, "source": address, "tags": pairs}
        return int(self.client.call("POST", "model-versions/create", body=body)["model_version"]["version"])


def with_report(source: AdapterSource, **fields: object) -> AdapterSource:
    """The same source with fields of its gate report changed."""
    return replace(source, report={**source.report, **fields})


def _manifest(name: str, digest: str, source: AdapterSource) -> AdapterManifest:
    return AdapterManifest(
        name=name,
        digest=digest,
        base_model=source.model.name,
        base_digest=source.base_digest or base_digest(source.model),
        method="lora",
        rank=source.rank,
        alpha=2.0 * source.rank,
        target_modules=("q_proj", "v_proj", "down_proj"),
        trained_on="fp32",
        dataset_digest="sha256:" + "0" * 64,
        spec_digest="sha256:" + "1" * 64,
        prompt=source.prompt,
        metric="exact_match",
        chat_template=source.chat_template,
    )


def _exists(client: RegistryClient, name: str) -> bool:
    try:
        client.get_model(name)
    except RegistryNotFound:
        return False
    return True


def _next_version(client: RegistryClient, name: str) -> int:
    return max((item.version for item in client.search_versions(name)), default=0) + 1
