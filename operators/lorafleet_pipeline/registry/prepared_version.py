"""What a pipeline run has ready to be registered, checked against itself."""

from __future__ import annotations

import json
from dataclasses import dataclass

from lorafleet_contract.digest import adapter_digest
from lorafleet_contract.manifest import AdapterManifest
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.exceptions import RegistrationError
from lorafleet_pipeline.registry.flavour import AdapterFiles
from lorafleet_pipeline.registry.gate_report import GateReport
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.training.result import TrainingResult


@dataclass(frozen=True)
class PreparedVersion:
    """The parts of a version, which belong together."""

    manifest: AdapterManifest
    gate: GateReport
    files: AdapterFiles
    run_key: str
    mlflow_run_id: str | None

    @classmethod
    def read(cls, run: RunFolder, training: TrainingResult, gate_key: str) -> PreparedVersion:
        """Read the run folder.

        Raises:
            RegistrationError: a part is missing, or the parts do not belong together.
            SignatureInvalid: the gate report was not signed with this key.
        """
        files = AdapterFiles(run.adapter_folder, run.manifest, run.gate_report, run.dataset / "manifest.json")
        try:
            manifest = AdapterManifest.from_json(json.loads(files.manifest.read_text()))
            gate = GateReport.read(files.gate_report.read_bytes(), gate_key)
            digest = adapter_digest(files.adapter)
        except FileNotFoundError as error:
            raise RegistrationError(f"{error.filename} is missing: run `lorafleet evaluate` for this run") from error
        about = {"the manifest": manifest.digest, "the gate report": gate.digest}
        for part, claimed in about.items():
            if claimed != digest:
                raise RegistrationError(
                    f"{part} of {run.path} is about {claimed}, the adapter is {digest}: evaluate again"
                )
        if gate.manifest_digest != manifest.manifest_digest:
            raise RegistrationError(f"the manifest of {run.path} was changed after the gate report: evaluate again")
        return cls(manifest, gate, files, run.run_key, training.mlflow_run_id)

    def tags(self) -> dict[str, str]:
        """The version's tags."""
        manifest, gate = self.manifest, self.gate
        tags = {
            Tag.LORA_DIGEST: manifest.digest,
            Tag.LORA_RANK: str(manifest.rank),
            Tag.LORA_ALPHA: f"{manifest.alpha:g}",
            Tag.LORA_METHOD: manifest.method,
            Tag.LORA_TARGET_MODULES: ",".join(manifest.target_modules),
            Tag.LORA_BASE_MODEL: manifest.base_model,
            Tag.LORA_BASE_DIGEST: manifest.base_digest,
            Tag.LORA_TRAINED_ON: manifest.trained_on,
            Tag.DATASET_DIGEST: manifest.dataset_digest,
            Tag.SPEC_DIGEST: manifest.spec_digest,
            Tag.CONTRACT_VERSION: manifest.contract_version,
            Tag.GATE_STATUS: gate.status.value,
            Tag.GATE_REASON: gate.reason,
            Tag.RUN_KEY: self.run_key,
        }
        if gate.waived_by:
            tags[Tag.GATE_WAIVED_BY] = gate.waived_by
        return {key.value: value for key, value in tags.items()}
