"""`lorafleet serve` starts a pod with no more than a pod needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorafleet_pipeline.stack.components import StackComponents
from lorafleet_pipeline.stack.home import StackHome
from lorafleet_pipeline.stack.options import StackOptions
from lorafleet_pipeline.stack.ports import choose_ports
from lorafleet_pipeline.stack.secrets import Secrets

# The command's last step puts the pod in its place; what the pod would find is printed instead.
_SHOW = (
    "import os, sys\n"
    "from lorafleet_cli import main\n"
    "def show(path, command, environment):\n"
    "    print('\\n'.join(f'{name}={value}' for name, value in environment.items()))\n"
    "os.execve = show\n"
    "main.main()"
)


@pytest.fixture
def components(tmp_path: Path) -> StackComponents:
    """A stack that has written its settings into its home."""
    home = StackHome(tmp_path / "home")
    home.create()
    ports = choose_ports(home.ports, {}, lambda port: False).ports
    made = StackComponents(home, StackOptions(), ports, Secrets.load_or_create(home.secrets))
    home.environment.write_text("".join(f"{name}={value}\n" for name, value in made.environment().items()))
    return made


def _pod_environment(home: Path, tmp_path: Path, **given: str) -> dict[str, str]:
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (model / name).touch()
    outer = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LORAFLEET_", "MLFLOW_"))
    }
    result = subprocess.run(
        [sys.executable, "-c", _SHOW, "serve", "--model", str(model)],
        env={**outer, "LORAFLEET_HOME": str(home), **given},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return dict(line.split("=", 1) for line in result.stdout.splitlines() if "=" in line)


def _aws(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith("AWS_")}


@pytest.mark.parametrize("shell", [{}, {"AWS_ACCESS_KEY_ID": "cloud", "AWS_SESSION_TOKEN": "t", "AWS_PROFILE": "work"}])
def test_pod_beside_the_stack_reads_its_s3_with_the_pods_key(
    components: StackComponents, tmp_path: Path, shell: dict[str, str]
) -> None:
    environment = _pod_environment(components.home.folder, tmp_path, **shell)
    assert environment["LORAFLEET_S3_ENDPOINT"] == components.s3.endpoint
    assert _aws(environment) == components.s3.pod.environment()
    assert components.secrets.s3_platform_secret not in environment.values()
    assert environment["LORAFLEET_GATE_KEY"] == components.secrets.gate_key


def test_pod_of_a_shell_that_has_read_the_stacks_settings_has_the_pods_key_too(
    components: StackComponents, tmp_path: Path
) -> None:
    environment = _pod_environment(components.home.folder, tmp_path, **components.environment())
    assert _aws(environment) == components.s3.pod.environment()


def test_pod_of_another_s3_has_the_credentials_of_the_shell_alone(components: StackComponents, tmp_path: Path) -> None:
    shell = {"LORAFLEET_S3_ENDPOINT": "http://other", "AWS_ACCESS_KEY_ID": "cloud", "AWS_SECRET_ACCESS_KEY": "secret"}
    environment = _pod_environment(components.home.folder, tmp_path, **shell)
    assert environment["LORAFLEET_S3_ENDPOINT"] == "http://other"
    assert _aws(environment) == {name: value for name, value in shell.items() if name.startswith("AWS_")}


def test_pod_of_no_stack_has_the_environment_of_the_shell(tmp_path: Path) -> None:
    environment = _pod_environment(tmp_path / "none", tmp_path, AWS_ACCESS_KEY_ID="cloud")
    assert _aws(environment) == {"AWS_ACCESS_KEY_ID": "cloud"}
    assert not (tmp_path / "none").exists()
