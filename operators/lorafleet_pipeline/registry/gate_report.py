"""The signed gate report of a version, read and, for a waiver, signed anew.

Tags can be edited by anyone who may write to the registry; only this report counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorafleet_contract.signature import sign, verify
from lorafleet_contract.states import GateStatus
from lorafleet_pipeline.exceptions import GateReportInvalid


@dataclass(frozen=True)
class GateReport:
    """A gate report whose signature holds. `document` is the whole of it."""

    document: Mapping[str, Any]
    digest: str
    manifest_digest: str
    status: GateStatus
    reason: str
    waived_by: str | None

    @classmethod
    def read(cls, text: bytes, key: str) -> GateReport:
        """Read a report.

        Raises:
            SignatureInvalid: it is not signed, or not with this key.
            GateReportInvalid: a field is missing or wrong.
        """
        try:
            document = json.loads(text)
            verify(document, key)
            return cls(
                document=document,
                digest=str(document["digest"]),
                manifest_digest=str(document["manifest_digest"]),
                status=GateStatus(document["status"]),
                reason=str(document.get("reason") or ""),
                waived_by=document.get("waived_by"),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise GateReportInvalid(f"gate report cannot be read ({error!r}): evaluate the version again") from error

    @property
    def failed_checks(self) -> tuple[str, ...]:
        """Names and details of the checks that did not pass."""
        checks = self.document.get("checks", ())
        return tuple(f"{item['name']} ({item.get('detail', '')})" for item in checks if not item.get("passed"))

    def waive(self, reason: str, waived_by: str, key: str) -> GateReport:
        """The report with its verdict waived, signed again; the checks stay as they were."""
        waived = {**self.document, "status": GateStatus.WAIVED.value, "reason": reason, "waived_by": waived_by}
        return GateReport.read(json.dumps(sign(waived, key)).encode(), key)

    def to_bytes(self) -> bytes:
        """The report as it stands in a file."""
        return json.dumps(self.document, indent=2, ensure_ascii=False).encode()
