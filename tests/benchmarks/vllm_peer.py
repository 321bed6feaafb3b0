"""vLLM as a peer, where it is installed: in an environment of its own, in a process for each measurement."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from lorafleet_contract.openmp import BRIEF_WAITS
from lorafleet_pipeline.exceptions import InvalidSetting

NAMES = ("vllm.base", "vllm.adapters_8")
"""What is measured of it, as the results name it."""
OPTION = "--vllm-python"
_SCRIPT = Path(__file__).parent / "peers" / "vllm_decoding.py"
_IMPORT = "import vllm; print(vllm.__version__)"
_LIMIT_S = 1800.0
_NOT_ITS_OWN = {"PYTHONPATH", "PYTHONHOME", *BRIEF_WAITS}
"""Variables that are of our environment alone, or how our engine's threads wait."""


@dataclass(frozen=True)
class DecodingBatch:
    """What every contender decodes."""

    model: Path
    prompt: tuple[int, ...]
    rank: int
    """Of the adapters."""
    num_seqs: int
    num_tokens: int


class VllmPeer:
    """vLLM's engine on the CPU.

    Raises:
        InvalidSetting: it cannot be imported there.
    """

    def __init__(self, python: Path) -> None:
        self._python = python.absolute()
        self.version = _last_line(self._run(["-c", _IMPORT], "imported").stdout)

    def contenders(self, batch: DecodingBatch, adapters: Mapping[str, Path]) -> dict[str, Callable[[], float]]:
        """What is measured of it, by name."""
        eight = dict(list(adapters.items())[:8])
        return dict(zip(NAMES, (partial(self.decode, batch, {}), partial(self.decode, batch, eight)), strict=True))

    def decode(self, batch: DecodingBatch, adapters: Mapping[str, Path]) -> float:
        """Tokens per second of a batch whose sequences take turns at the adapters.

        Raises:
            InvalidSetting: it failed, or gave no answer.
        """
        paths = {name: str(path) for name, path in adapters.items()}
        job = {**asdict(batch), "model": str(batch.model.absolute()), "adapters": paths}
        with tempfile.TemporaryDirectory() as folder:
            asked, answer = Path(folder) / "job.json", Path(folder) / "answer.json"
            asked.write_text(json.dumps(job))
            self._run([str(_SCRIPT), str(asked), str(answer)], "run")
            try:
                return float(json.loads(answer.read_text())["tokens_per_s"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InvalidSetting(
                    f"vllm of {self._python} gave no answer that can be read ({error!r}): leave {OPTION} out"
                ) from error

    def _run(self, arguments: Sequence[str], what: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_ITS_OWN}
        environment |= {"CUDA_VISIBLE_DEVICES": ""}  # Everything here is measured on the CPU.
        command = [str(self._python), *arguments]
        try:
            done = _finish(command, environment)
            reason = "" if done.returncode == 0 else f"exit status {done.returncode}: {_last_line(done.stderr)}"
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        if reason:
            raise InvalidSetting(
                f"{OPTION} is {self._python}, where vllm cannot be {what} ({reason}): "
                "give the interpreter of an environment where it is installed, or leave the option out"
            )
        return done


def _finish(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command; if it is given up, its own children end with it, of which vLLM's engine is one."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment, stdout=pipe, stderr=pipe, text=True, cwd=_SCRIPT.parent, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=_LIMIT_S)
        except BaseException:  # A timeout and an interruption alike.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")
