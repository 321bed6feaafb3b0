"""The evaluation process: `python -m lorafleet_pipeline.evaluation RUN_FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path

from lorafleet_pipeline.evaluation.step import evaluation_files
from lorafleet_pipeline.exceptions import EvaluationError
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import load_spec
from lorafleet_pipeline.training.worker import LOCK_FD_OPTION, ProgressLog, step_process


def main() -> None:
    """Evaluate the adapter of a run folder."""
    parser = argparse.ArgumentParser(prog="python -m lorafleet_pipeline.evaluation", description=main.__doc__)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument(LOCK_FD_OPTION, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    run = RunFolder(options.run_folder.resolve())
    files = evaluation_files(run)
    with step_process(files, options.lock_fd, failure=EvaluationError, stopped=EvaluationError):
        # The heavy imports come after the lock, so that a second process ends at once.
        from lorafleet_pipeline.evaluation.comparison import Comparison

        log = ProgressLog(files.progress)
        settings = PlatformSettings.load(registry_required=False)
        spec = load_spec(run.spec_file)
        Comparison(spec, run, settings, lambda progress: log.append(progress.to_json())).execute()


if __name__ == "__main__":
    main()
