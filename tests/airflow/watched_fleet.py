"""A registry with adapters and a pod that answers, as the DAGs over serving see them.

Registry, storage and HTTP are real. The pod follows aliases and answers from a table, it loads nothing.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

import httpx

from lorafleet_contract.aliases import Alias
from lorafleet_contract.manifest import MANIFEST_FILE, AdapterManifest
from lorafleet_contract.prompt import PromptBlock
from lorafleet_contract.registry import RegistryClient, RegistryEndpoint
from lorafleet_contract.states import GateStatus
from lorafleet_contract.tags import Tag
from tests.pipeline.registry.fake_pod import BASE_DIGEST, FakePod

if TYPE_CHECKING:
    from tests.services import RunningMLflow


class AnsweringPod(FakePod):
    """A pod that follows aliases and answers completions. `failing` are adapters that it answers with this status."""

    def __init__(self, base_digest: str = BASE_DIGEST) -> None:
        super().__init__(base_digest)
        self.failing: dict[str, int] = {}
        self.asked: list[dict[str, Any]] = []

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, document and headers for one question."""
        self.asked.append(body)
        name = str(body["model"]).partition("@")[0]
        if status := self.failing.get(name):
            return status, {"error": {"message": "the engine gave up"}}, {}
        report = next(item for item in self.report().adapters if item.name == name)
        held = next(item for item in report.versions if item.version == report.serving)
        choice = {"text": " fine", "finish_reason": "length"}
        document = {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
        return 200, document, {"x-lorafleet-adapter": f"{name}:{held.version}", "x-lorafleet-digest": held.digest}

    def _handler(pod) -> type[BaseHTTPRequestHandler]:
        class Handler(super()._handler()):  # type: ignore[misc]
            def do_POST(self) -> None:
                if self.path != "/v1/completions":
                    super().do_POST()
                    return
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, document, headers = pod.answer(body)
                data = json.dumps(document).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        return Handler


@dataclass
class WatchedFleet:
    """Registry, storage and the pod that follows, if there is one."""

    mlflow: RunningMLflow
    followed_by: AnsweringPod | None = None

    @property
    def pod(self) -> AnsweringPod:
        assert self.followed_by is not None
        return self.followed_by

    @property
    def registry(self) -> RegistryClient:
        return RegistryClient(RegistryEndpoint(self.mlflow.url))

    def adapter(self, versions: int = 1, gate: GateStatus = GateStatus.PASSED, base: str = BASE_DIGEST) -> str:
        """A new adapter with some versions; its name."""
        name = f"watched-{uuid.uuid4().hex[:8]}"
        self._post("registered-models/create", {"name": name})
        for number in range(1, versions + 1):
            self._version(name, number, gate, base)
        return name

    def promote(self, name: str, version: int) -> None:
        """Move the champion and let the pod see it."""
        self.registry.set_alias(name, Alias.CHAMPION, version)
        self.pod.sync(name)

    def champion(self, name: str) -> int | None:
        return self.registry.get_model(name).aliases.get(Alias.CHAMPION)

    def _version(self, name: str, number: int, gate: GateStatus, base: str) -> None:
        digest = f"sha256:{uuid.uuid4().hex}{uuid.uuid4().hex}"
        source = f"s3://mlflow/{name}/{number}"
        prompt = PromptBlock("{{ text }}\n", ("text",), examples=({"text": "a row"},))
        manifest = AdapterManifest(
            name, digest, "base", base, "lora", 4, 8.0, ("q_proj",), "fp32", "sha256:d", "sha256:s", prompt, "rougeL"
        )
        body = json.dumps(manifest.to_json()).encode()
        self.mlflow.s3.client().put_object(Bucket="mlflow", Key=f"{name}/{number}/{MANIFEST_FILE}", Body=body)
        tags = {
            Tag.LORA_DIGEST: digest,
            Tag.LORA_BASE_DIGEST: base,
            Tag.GATE_STATUS: gate.value,
            Tag.GATE_REASON: "lift 0.01 is below 0.05" if gate is GateStatus.FAILED else "",
        }
        listed = [{"key": key.value, "value": value} for key, value in tags.items()]
        self._post("model-versions/create", {"name": name, "source": source, "tags": listed})

    def _post(self, path: str, body: dict[str, Any]) -> None:
        answer = httpx.post(f"{self.mlflow.url}/api/2.0/mlflow/{path}", json=body, trust_env=False)
        assert answer.is_success, answer.text
