"""The training process: `python -m lorafleet_pipeline.training RUN_FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path

from lorafleet_pipeline.exceptions import TrainingCancelled, TrainingError
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import load_spec
from lorafleet_pipeline.training.worker import LOCK_FD_OPTION, StepFiles, step_process


def main() -> None:
    """Train the adapter of a run folder."""
    parser = argparse.ArgumentParser(prog="python -m lorafleet_pipeline.training", description=main.__doc__)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument(LOCK_FD_OPTION, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    run = RunFolder(options.run_folder.resolve())
    with step_process(StepFiles(run.training), options.lock_fd, failure=TrainingError, stopped=TrainingCancelled):
        # The heavy imports come after the lock, so that a second process ends at once.
        from lorafleet_pipeline.training.fine_tuning import fine_tune

        fine_tune(load_spec(run.spec_file), run, PlatformSettings.load(registry_required=False))


if __name__ == "__main__":
    main()
