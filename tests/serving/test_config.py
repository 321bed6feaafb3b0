"""Settings of the pod: flags before variables before defaults, and errors that name the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafleet_serving.config import read_config
from lorafleet_serving.exceptions import InvalidSetting


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_flags_win_over_variables_and_those_over_defaults(model: Path, tmp_path: Path) -> None:
    environment = {
        "LORAFLEET_BASE_MODEL": str(model),
        "LORAFLEET_HOME": str(tmp_path),
        "LORAFLEET_PORT": "1",
        "LORAFLEET_MAX_NUM_SEQS": "7",
        "LORAFLEET_S3_BUCKETS": "mlflow, models.eu",
    }
    config = read_config(["--port", "2"], environment)
    assert (config.port, config.engine.max_num_seqs, config.host) == (2, 7, "127.0.0.1")
    assert config.fetcher.cache_dir == tmp_path / "cache"
    assert config.fetcher.s3_buckets == ("mlflow", "models.eu")
    assert (config.base_id, config.registry) == ("base", None)


def test_a_password_in_the_address_of_the_registry_is_refused_untold(model: Path) -> None:
    with pytest.raises(InvalidSetting, match="MLFLOW_TRACKING_PASSWORD") as refused:
        read_config(["--model", str(model), "--registry-url", "http://ann:hidden@registry:5000/"], {})
    assert "hidden" not in str(refused.value)


def test_secrets_come_from_variables_and_do_not_print(model: Path) -> None:
    environment = {
        "LORAFLEET_MLFLOW_URL": "http://registry:5000",
        "LORAFLEET_ADMIN_TOKEN": "secret-a",
        "LORAFLEET_GATE_KEY": "secret-b",
        "LORAFLEET_WEBHOOK_SECRET": "secret-c",
        "MLFLOW_TRACKING_TOKEN": "secret-d",
    }
    config = read_config(["--model", str(model)], environment)
    assert (config.admin_token, config.fetcher.gate_key, config.webhook_secret) == ("secret-a", "secret-b", "secret-c")
    assert "secret-" not in repr(config)


@pytest.mark.parametrize(
    ("flags", "variables", "said"),
    [
        ([], {}, "--model"),
        (["--model", "/nowhere"], {}, "config.json"),
        (["--port", "many"], {}, "--port or LORAFLEET_PORT"),
        (["--port", "70000"], {}, "LORAFLEET_PORT"),
        (["--dtype", "int3"], {}, "int3"),
        (["--weights", "int3"], {}, "model, int8, int4, nf4"),
        (["--silence-limit", "1"], {}, "between 2 and 3600"),
        (["--max-body-bytes", "1"], {}, "at least 1024"),
        (["--step-limit", "0"], {}, "between 2 and 86400"),
        (["--smoke-tokens", "9"], {}, "between 1 and 8"),
        (["--max-adapter-bytes", "99999999999"], {}, "disk_bytes"),
        (["--s3-endpoint", "somewhere"], {}, "http://"),
        (["--local-roots", "/tmp,relative"], {}, "absolute paths of folders"),
        (["--local-roots", "/nowhere/at/all"], {}, "absolute paths of folders"),
        (["--s3-buckets", "mlflow,s3://other"], {}, "names of buckets, separated by commas"),
        (["--registry-url", "http://registry"], {}, "LORAFLEET_GATE_KEY"),
        (["--served-name", "模型"], {}, "served_name"),
        ([], {"LORAFLEET_MLFLOW_URL": "registry", "LORAFLEET_GATE_KEY": "k"}, "registry_url"),
    ],
)
def test_a_bad_setting_is_named_with_its_remedy(
    model: Path, flags: list[str], variables: dict[str, str], said: str
) -> None:
    given = flags if "--model" in flags or said == "--model" else ["--model", str(model), *flags]
    with pytest.raises(InvalidSetting) as error:
        read_config(given, variables)
    assert said in str(error.value)
