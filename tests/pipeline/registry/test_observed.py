from __future__ import annotations

import pytest

from lorafleet_contract.aliases import Stage
from lorafleet_pipeline.registry.observed import Observed


def test_tag_keeps_order_within_a_stage() -> None:
    stages = {7: Stage.ARCHIVED, 3: Stage.PRODUCTION, 1: Stage.PRODUCTION, 5: Stage.STAGING}
    read = Observed.from_tag(Observed(9, {"champion": 1}, stages).to_tag())
    assert read == Observed(9, {"champion": 1}, stages)
    assert [version for version, stage in read.stages.items() if stage is Stage.PRODUCTION] == [3, 1]


def test_tag_of_many_archived_versions_stays_short() -> None:
    stages = dict.fromkeys(range(1, 5001), Stage.ARCHIVED)
    tag = Observed(1, {}, stages).to_tag()
    assert len(tag) < 200
    assert Observed.from_tag(tag).stages == stages


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"serial": 1}', '{"aliases": 3, "archived": "x"}'])
def test_edited_tag_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Observed.from_tag(text)
