"""The manifest of a registered version: what a pod must know before it loads any weight.

Stands as `manifest.json` beside `adapter/` in the version's artifacts. The gate report is signed
over the manifest's digest as well as over the adapter's, so that neither can be exchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorafleet_contract import CONTRACT_VERSION
from lorafleet_contract.digest import document_digest
from lorafleet_contract.exceptions import InvalidManifest
from lorafleet_contract.fields import check_field_types
from lorafleet_contract.prompt import PromptBlock

MANIFEST_FILE = "manifest.json"
GATE_REPORT_FILE = "gate/report.json"
DATASET_MANIFEST_FILE = "dataset/manifest.json"
MODEL_CARD_FILE = "MODEL_CARD.md"
ADAPTER_FOLDER = "adapter"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
MAX_CHAT_TEMPLATE_CHARACTERS = 65_536
_TOKENIZER_CONFIG_FILE = "tokenizer_config.json"


@dataclass(frozen=True)
class AdapterManifest:
    """Facts of one adapter version that serving and the interfaces need."""

    name: str
    digest: str
    base_model: str
    base_digest: str
    method: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    trained_on: str
    """Form of the base in training: `nf4`, `bf16` or `fp32`."""
    dataset_digest: str
    spec_digest: str
    prompt: PromptBlock
    metric: str
    owner: str = ""
    chat_template: str | None = None
    """The adapter's own chat template, where it was trained with another than the base model's."""
    contract_version: str = CONTRACT_VERSION

    @property
    def manifest_digest(self) -> str:
        """Digest of the manifest itself."""
        return document_digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The manifest as a JSON object."""
        document = {
            **asdict(self),
            "target_modules": list(self.target_modules),
            "prompt": json.loads(json.dumps(self.prompt.to_json())),
        }
        if self.chat_template is None:  # Manifests from before it was a field keep their digest.
            del document["chat_template"]
        return document

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AdapterManifest:
        """Read a manifest.

        Raises:
            InvalidManifest: a field is missing, unknown or of the wrong type, or the contract is a newer one.
        """
        version = data.get("contract_version")
        if version != CONTRACT_VERSION:
            raise InvalidManifest(
                f"manifest has contract version {version!r}, this installation reads {CONTRACT_VERSION!r}: "
                "upgrade the older of pipeline and pod"
            )
        fields = dict(data)
        try:
            fields["prompt"] = PromptBlock.from_json(fields["prompt"])
            fields["target_modules"] = tuple(fields["target_modules"])
            manifest = cls(**fields)
            check_field_types(manifest)
            _check_chat_template(manifest.chat_template)
        except (KeyError, TypeError) as error:
            raise InvalidManifest(f"manifest: {error}") from error
        return manifest


def read_chat_template(folder: Path) -> str | None:
    """The chat template that a folder of tokenizer files carries; None if it carries none.

    Raises:
        InvalidManifest: it has several, or is too long to be served.
    """
    file, config = folder / CHAT_TEMPLATE_FILE, folder / _TOKENIZER_CONFIG_FILE
    template: object = None
    if file.is_file():
        template = file.read_text(encoding="utf-8")
    elif config.is_file():
        template = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    if template is not None and not isinstance(template, str):
        raise InvalidManifest(f"{config} has several chat templates: leave the one that the adapter was trained with")
    _check_chat_template(template)
    return template


def _check_chat_template(template: str | None) -> None:
    if template is not None and len(template) > MAX_CHAT_TEMPLATE_CHARACTERS:
        raise InvalidManifest(
            f"the chat template has {len(template)} characters, at most {MAX_CHAT_TEMPLATE_CHARACTERS} are served"
        )
