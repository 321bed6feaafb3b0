"""What a version's signed gate report says, whether it lets it be promoted, and the waiver where a person says so."""

from __future__ import annotations

from lorafleet_contract.exceptions import SignatureInvalid
from lorafleet_contract.manifest import GATE_REPORT_FILE
from lorafleet_contract.registry import ModelVersion, RegistryClient
from lorafleet_contract.states import GateStatus
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.exceptions import GateRefused
from lorafleet_pipeline.registry.actor import Actor
from lorafleet_pipeline.registry.gate_report import GateReport
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.storage import Storage


def check_gate(
    registry: RegistryClient, item: ModelVersion, settings: PlatformSettings, waive: str | None, actor: Actor
) -> None:
    """See that a version may be served; `waive` gives the reason for serving one whose gate failed.

    Raises:
        GateRefused: the gate did not pass, or the report is not of this version.
    """
    report = read_gate_report(registry, item, settings)
    if report.status is GateStatus.WAIVED:
        _tag_waiver(registry, item, report)
    if report.status.servable:
        return
    if not waive:
        checks = "; ".join(report.failed_checks) or report.reason
        raise GateRefused(
            f"the gate of version {item.version} of {item.name} failed: {checks}; train a better one, or "
            "--waive REASON to serve it all the same"
        )
    waived = report.waive(waive, actor.who or "unknown", settings.require_gate_key())
    Storage(settings.s3).write_bytes(_address(registry, item), waived.to_bytes())
    # Tags after the report: pods look again when a tag changes.
    _tag_waiver(registry, item, waived)


def read_gate_report(registry: RegistryClient, item: ModelVersion, settings: PlatformSettings) -> GateReport:
    """The signed report of a version, whatever it says.

    Raises:
        GateRefused: it is not signed, not with this key, or is not of this version.
        GateReportInvalid: a field is missing or wrong.
        StorageError: it cannot be read.
    """
    try:
        text = Storage(settings.s3).read_bytes(_address(registry, item))
        report = GateReport.read(text, settings.require_gate_key())
    except SignatureInvalid as error:
        raise GateRefused(f"version {item.version} of {item.name}: {error}") from error
    if report.digest != item.tags[Tag.LORA_DIGEST]:
        raise GateRefused(
            f"version {item.version} of {item.name}: the gate report is about {report.digest}, the version is "
            f"{item.tags[Tag.LORA_DIGEST]}: evaluate and register it again"
        )
    return report


def _address(registry: RegistryClient, item: ModelVersion) -> str:
    return f"{registry.get_artifact_address(item.name, item.version)}/{GATE_REPORT_FILE}"


def _tag_waiver(registry: RegistryClient, item: ModelVersion, waived: GateReport) -> None:
    tags = {Tag.GATE_WAIVED_BY: waived.waived_by or "", Tag.GATE_REASON: waived.reason, Tag.GATE_STATUS: waived.status}
    for key, value in tags.items():
        if item.tags.get(key) != value:
            registry.set_version_tag(item.name, item.version, key, value)
