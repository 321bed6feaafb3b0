"""Which adapters are tried, and which are known to have passed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafleet_contract.manifest import AdapterManifest
from lorafleet_serving.adapters.eviction import EvictionOrder, EvictionPolicy
from lorafleet_serving.adapters.host import AdapterFiles, HostTier
from lorafleet_serving.adapters.smoke import SmokeTest
from lorafleet_serving.adapters.trial import Trial
from lorafleet_serving.adapters.trial_memory import TrialMemory
from lorafleet_serving.exceptions import AdapterRefusal, GenerationFailed
from lorafleet_serving.tokenizer import PodTokenizer
from tests.serving.adapters.memory_engine import MemoryEngine
from tests.serving.registered_adapter import PROMPT

DIGEST = f"sha256:{1:064x}"
MANIFEST = AdapterManifest(
    "docs", DIGEST, "base", "sha256:0", "lora", 4, 8.0, ("q_proj",), "fp32", "sha256:0", "sha256:0", PROMPT, "none"
)


class CountedSmoke(SmokeTest):
    """Generates nothing, and says which adapters it was to generate with."""

    def __init__(self, engine: MemoryEngine, model: Path) -> None:
        super().__init__(engine, PodTokenizer(model), 1)
        self.asked: list[str] = []
        self.fails = False

    async def run(self, digest: str, token_ids: tuple[int, ...]) -> None:
        self.asked.append(digest)
        if self.fails:
            raise GenerationFailed("values that are not finite")


def start(model: Path, folder: Path) -> tuple[Trial, CountedSmoke]:
    """Trials of a pod that starts."""
    engine = MemoryEngine({DIGEST: 1}, 10)
    engine._ready.set()
    smoke = CountedSmoke(engine, model)
    host = HostTier(engine, 10, EvictionOrder(EvictionPolicy.LRU), room_limit_s=1.0)
    return Trial(engine, host, smoke, TrialMemory(folder, "conditions")), smoke


async def run(trial: Trial) -> None:
    await trial.run(DIGEST, AdapterFiles("folder", 1), MANIFEST.prompt)


async def test_what_passed_is_not_tried_again_at_the_next_start(tiny_model: Path, tmp_path: Path) -> None:
    for asked in ([DIGEST], []):
        trial, smoke = start(tiny_model, tmp_path)
        await run(trial)
        await run(trial)
        assert smoke.asked == asked


async def test_what_failed_is_tried_again(tiny_model: Path, tmp_path: Path) -> None:
    trial, smoke = start(tiny_model, tmp_path)
    smoke.fails = True
    with pytest.raises(AdapterRefusal, match="not finite"):
        await run(trial)
    trial, smoke = start(tiny_model, tmp_path)
    await run(trial)
    assert smoke.asked == [DIGEST]


async def test_what_is_distrusted_later_is_tried_again_at_the_next_start_too(tiny_model: Path, tmp_path: Path) -> None:
    trial, _ = start(tiny_model, tmp_path)
    await run(trial)
    trial.forget(DIGEST)
    trial, smoke = start(tiny_model, tmp_path)
    await run(trial)
    assert smoke.asked == [DIGEST]
