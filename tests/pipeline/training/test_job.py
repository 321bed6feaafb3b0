"""The training process: one for a folder, found again, followed, cancelled, and resumed after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lorafleet_contract.digest import adapter_digest
from lorafleet_pipeline.datasets.preparation import read_prepared
from lorafleet_pipeline.exceptions import (
    BaseModelUnavailable,
    StorageError,
    TrainingCancelled,
    TrainingDiverged,
    TrainingError,
    TrainingLost,
)
from lorafleet_pipeline.process_identity import ProcessIdentity
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.training.job import TrainingIdentity, TrainingJob
from lorafleet_pipeline.training.process import StepProcess
from lorafleet_pipeline.training.progress import TrainingProgress
from lorafleet_pipeline.training.result import TrainingResult
from lorafleet_pipeline.training.step import train
from lorafleet_pipeline.training.worker import StepFiles, try_lock, write_json
from tests.pipeline.training.conftest import SpecFactory
from tests.pipeline.training.prepared_run import make_run, make_settings
from tests.waiting import wait_for

LONG = {"steps": 5000, "checkpoint_every": 500}


@pytest.fixture
def platform(tmp_path: Path) -> PlatformSettings:
    return make_settings(tmp_path)


class _Follower(threading.Thread):
    """Calls train() beside the test."""

    def __init__(self, call: Callable[[], TrainingResult]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.result: TrainingResult | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except TrainingError as error:
            self.error = error


def _kill_at(run: RunFolder, step: int) -> Callable[[TrainingProgress], None]:
    def kill(progress: TrainingProgress) -> None:
        pid = TrainingJob(run).pid
        if progress.step >= step and pid is not None:
            os.kill(pid, signal.SIGKILL)

    return kill


def _step(run: RunFolder) -> int:
    progress = TrainingJob(run).progress()
    return 0 if progress is None else progress.step


def test_killed_training_is_named_and_resumes_to_the_same_adapter(
    spec_of: SpecFactory, platform: PlatformSettings
) -> None:
    spec = spec_of(training={"steps": 60, "checkpoint_every": 10})
    whole, parts = make_run(spec, platform, "whole"), make_run(spec, platform, "parts")
    expected = train(spec, whole, platform)
    with pytest.raises(TrainingLost, match=r"SIGKILL.*process\.log"):
        train(spec, parts, platform, _kill_at(parts, 25))
    resumed: list[TrainingProgress] = []
    result = train(spec, parts, platform, resumed.append)
    assert result.adapter_digest == expected.adapter_digest == adapter_digest(parts.adapter_folder)
    assert result.num_steps == 60
    assert result.num_tokens == expected.num_tokens
    first = (parts.training / "process.log").read_text()
    assert "resuming after step" in first
    assert train(spec, parts, platform) == result


def test_second_caller_follows_the_process_that_runs(
    spec_of: SpecFactory, platform: PlatformSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(training=LONG)
    run = make_run(spec, platform)
    followers = [_Follower(lambda: train(spec, run, platform)) for _ in range(2)]
    wait_for(lambda: _step(run) >= 3, "the first steps", 120)
    pid = TrainingJob(run).pid
    followers.append(_Follower(lambda: train(spec, run, platform)))
    before = _step(run)
    wait_for(lambda: _step(run) > before, "further steps", 60)
    assert TrainingJob(run).pid == pid
    by_hand = subprocess.run(
        [sys.executable, "-m", "lorafleet_pipeline.training", str(run.path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert by_hand.returncode == 1
    assert "another process works in" in by_hand.stderr
    gone_within = StepProcess._gone_within

    def look_at_once(process: StepProcess, seconds: float) -> bool:
        is_gone = gone_within(process, seconds)
        with pytest.raises(TrainingCancelled, match="was cancelled"):
            TrainingJob(run).follow()
        return is_gone

    monkeypatch.setattr(StepProcess, "_gone_within", look_at_once)
    assert TrainingJob(run).cancel()
    for follower in followers:
        follower.join(timeout=30)
        assert isinstance(follower.error, TrainingCancelled)
    assert not TrainingJob(run).is_running
    assert pid is not None
    assert _is_gone(pid)
    assert not TrainingJob(run).cancel()


def test_a_process_of_another_dataset_is_not_followed(spec_of: SpecFactory, platform: PlatformSettings) -> None:
    spec = spec_of(training=LONG)
    run = make_run(spec, platform)
    job = TrainingJob(run)
    assert job.start(platform, TrainingIdentity(spec.spec_digest, "sha256:of-another-dataset"))
    try:
        with pytest.raises(TrainingError, match="another spec or dataset"):
            train(spec, run, platform)
    finally:
        job.cancel()


def test_divergence_reaches_the_caller_as_it_was_raised(spec_of: SpecFactory, platform: PlatformSettings) -> None:
    spec = spec_of(training={"learning_rate": 1.0, "max_grad_norm": 1e30}, method={"alpha": 1e36})
    with pytest.raises(TrainingDiverged, match="at step"):
        train(spec, make_run(spec, platform), platform)


def test_missing_base_model_reaches_the_caller_as_it_was_raised(
    spec_of: SpecFactory, platform: PlatformSettings, tmp_path: Path
) -> None:
    spec = spec_of(base_model=str(tmp_path / "absent.gguf"))
    with pytest.raises(BaseModelUnavailable, match="does not exist"):
        train(spec, make_run(spec, platform), platform)


def test_changed_spec_needs_a_new_validation(spec_of: SpecFactory, platform: PlatformSettings) -> None:
    run = make_run(spec_of(), platform)
    with pytest.raises(TrainingError, match="validate again"):
        train(spec_of(training={"steps": 3}), run, platform)


def test_stale_result_of_other_data_is_not_taken(spec_of: SpecFactory, platform: PlatformSettings) -> None:
    spec = spec_of(training={"steps": 2})
    run = make_run(spec, platform)
    identity = TrainingIdentity(spec.spec_digest, "sha256:before")
    files = StepFiles(run.training)
    job = TrainingJob(run)
    assert job.start(platform, identity)
    job.follow()
    assert job.result(identity) is not None
    result = train(spec, run, platform)
    assert result.dataset_digest != "sha256:before"
    assert job.result(identity) is None
    assert TrainingResult.read(files.result) == result


def test_lock_is_free_again_after_a_kill(spec_of: SpecFactory, platform: PlatformSettings) -> None:
    spec = spec_of(training=LONG)
    run = make_run(spec, platform)
    job = TrainingJob(run)
    job.start(platform, TrainingIdentity(spec.spec_digest, "sha256:any"))
    assert job.is_running
    assert job.pid is not None
    os.kill(job.pid, signal.SIGKILL)
    wait_for(lambda: not job.is_running, "the end of the process", 30)
    assert job.pid is None


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # Its parent, this test, has not reaped it yet.
    return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]


def test_process_id_that_another_process_has_now_is_neither_followed_nor_killed(tmp_path: Path) -> None:
    files = StepFiles(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as other:
        identity = ProcessIdentity.of(other.pid)
        assert identity is not None
        # As after a reboot: the id is taken again, by a process that started at another time.
        write_json(files.process, asdict(replace(identity, started_ticks=identity.started_ticks - 1)))
        process = StepProcess(files, "lorafleet_pipeline.training", [str(tmp_path)], lost=TrainingLost)
        assert (process.is_running, process.pid) == (False, None)
        assert not process.cancel(TrainingCancelled("enough"))
        assert other.poll() is None
        other.communicate(b"\n")
    assert other.returncode == 0


def test_two_who_look_at_once_see_no_process(tmp_path: Path) -> None:
    files = StepFiles(tmp_path)
    looking = try_lock(files.lock, shared=True)
    assert looking is not None
    process = StepProcess(files, "lorafleet_pipeline.training", [str(tmp_path)], lost=TrainingLost)
    assert not process.is_running
    os.close(looking)
    working = try_lock(files.lock)
    assert working is not None
    assert process.is_running
    os.close(working)


def test_report_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    files = StepFiles(tmp_path)
    files.progress.write_text('{"step": 1}\n{"step": 2, "lo{"step": 3}\n{"step": 4}\n')
    process = StepProcess(files, "lorafleet_pipeline.training", [str(tmp_path)], lost=TrainingLost)
    assert process.last_report() == {"step": 4}


def test_full_disk_reaches_the_caller_with_the_remedy(spec_of: SpecFactory, platform: PlatformSettings) -> None:
    spec = spec_of(training={"steps": 2})
    run = make_run(spec, platform)
    run.training.mkdir()
    TrainingJob(run)._prepare(TrainingIdentity(spec.spec_digest, read_prepared(run).digest))
    (run.training / "progress.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"No space left on device\): free some space there"):
        train(spec, run, platform)
