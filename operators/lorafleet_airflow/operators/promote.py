"""The step that makes a registered version the champion, as the spec's policy says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from airflow.providers.common.compat.sdk import AirflowSkipException

from lorafleet_airflow.failures import lasting_errors_fail_at_once
from lorafleet_airflow.gate import require_gate
from lorafleet_airflow.links.mlflow import VERSION_URL_KEY, ModelVersionLink, version_url
from lorafleet_airflow.operators.platform import PlatformOperator
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import PromotionPolicy


class PromoteAdapterOperator(PlatformOperator):
    """
    Move the alias ``champion`` to a version and wait until the pods serve it.

    A version whose gate did not pass fails the task at once, whatever the policy. With the policy ``manual`` the
    task is skipped and its log says how to promote. A version that is champion already is only waited for. With the
    policy ``auto`` a version that was served or refused before, and is not the champion, stays where it is: where spec
    and data are unchanged every run ends at it again, and to promote it would undo what replaced it, a rollback too.

    :param adapter: name of the adapter.
    :param version: the version to promote.
    :param policy: ``auto``, ``manual``, or ``approval``; for the last one the task stands behind an
        `ApproveVersionOperator`.
    :param wait_s: longest wait for the pods, in seconds.

    Connections: see `PlatformOperator`.
    """

    template_fields: Sequence[str] = (*PlatformOperator.template_fields, "adapter", "version", "policy")
    operator_extra_links = (ModelVersionLink(),)
    ui_color = "#e6f4ea"

    def __init__(
        self,
        *,
        adapter: str,
        version: int | str,
        policy: str = PromotionPolicy.AUTO.value,
        wait_s: float = 120.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.adapter = adapter
        self.version = version
        self.policy = policy
        self.wait_s = wait_s

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Check the gate, heed the policy, promote."""
        version = int(self.version)
        with lasting_errors_fail_at_once():
            settings = self.settings()
            url = version_url(settings.mlflow_url, self.adapter, version)
            context["ti"].xcom_push(key=VERSION_URL_KEY, value=url)
            require_gate(self.registry(), self.adapter, version)
            if PromotionPolicy(self.policy) is PromotionPolicy.MANUAL:
                raise AirflowSkipException(
                    f"promotion.policy is manual: version {version} passed its gate and waits; set the alias champion "
                    f"at {url}, or run `lorafleet promote {self.adapter} {version}`"
                )
            if PromotionPolicy(self.policy) is PromotionPolicy.AUTO:
                self._leave_what_had_its_turn(version)
            return self._promote(version, settings)

    def _leave_what_had_its_turn(self, version: int) -> None:
        from lorafleet_pipeline.registry.promotion import had_its_turn

        if had_its_turn(self.adapter, version, self.registry()):
            raise AirflowSkipException(
                f"version {version} of {self.adapter} was served or refused before and then replaced: it is not "
                f"promoted again by itself; run `lorafleet promote {self.adapter} {version}` if it is to serve"
            )

    def _promote(self, version: int, settings: PlatformSettings) -> dict[str, Any]:
        from lorafleet_pipeline.registry.actor import Actor, How
        from lorafleet_pipeline.registry.promotion import promote

        told: dict[str, str] = {}

        def tell(states: Mapping[str, str]) -> None:
            for pod, state in states.items():
                if told.get(pod) != state:
                    self.log.info("%s: %s", pod, state)
            told.update(states)

        actor = Actor(f"airflow:{self.dag_id}", How.DAG)
        promotion = promote(self.adapter, version, settings, wait_s=self.wait_s, on_progress=tell, actor=actor)
        self.log.info("%s version %d is champion on %d pods", self.adapter, version, len(promotion.pods))
        return {**asdict(promotion), "alias": str(promotion.alias), "pods": list(promotion.pods)}
