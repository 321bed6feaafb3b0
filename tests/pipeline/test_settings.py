"""Platform settings: environment over the stack's file, and the keys of S3 from where its endpoint comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafleet_pipeline.exceptions import InvalidSetting
from lorafleet_pipeline.settings import PlatformSettings, S3Settings, read_env_file


def _write(home: Path, **values: str) -> None:
    lines = [f"{name}={value}" for name, value in values.items()]
    (home / "stack.env").write_text("# written by the stack\n\n" + "\n".join(lines) + "\n")


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    _write(tmp_path, LORAFLEET_MLFLOW_URL="http://file", LORAFLEET_GATE_KEY="from-file")
    settings = PlatformSettings.load({"LORAFLEET_MLFLOW_URL": "http://environment"}, home=tmp_path)
    assert settings.mlflow_url == "http://environment"
    assert settings.gate_key == "from-file"


def test_foreign_aws_keys_do_not_reach_the_embedded_endpoint(tmp_path: Path) -> None:
    own = {"LORAFLEET_S3_ENDPOINT": "http://s3", "AWS_ACCESS_KEY_ID": "own", "AWS_SECRET_ACCESS_KEY": "secret"}
    _write(tmp_path, LORAFLEET_MLFLOW_URL="http://file", **own)
    s3 = PlatformSettings.load({"AWS_ACCESS_KEY_ID": "foreign"}, home=tmp_path).s3
    assert (s3.endpoint, s3.access_key_id) == ("http://s3", "own")
    elsewhere = {"LORAFLEET_S3_ENDPOINT": "http://other", "AWS_ACCESS_KEY_ID": "foreign"}
    assert PlatformSettings.load(elsewhere, home=tmp_path).s3.access_key_id == "foreign"


def test_temporary_credentials_are_read_handed_on_and_not_shown(tmp_path: Path) -> None:
    _write(tmp_path, LORAFLEET_MLFLOW_URL="http://file")
    given = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "hidden-secret",
        "AWS_SESSION_TOKEN": "hidden-token",
    }
    settings = PlatformSettings.load(given, home=tmp_path)
    assert settings.s3.session_token == "hidden-token"
    assert "hidden" not in repr(settings)
    assert PlatformSettings.load(settings.environ(), home=tmp_path) == settings


def test_token_of_other_keys_reaches_neither_the_embedded_endpoint_nor_a_process_of_ours(tmp_path: Path) -> None:
    own = {"LORAFLEET_S3_ENDPOINT": "http://s3", "AWS_ACCESS_KEY_ID": "own", "AWS_SECRET_ACCESS_KEY": "secret"}
    _write(tmp_path, LORAFLEET_MLFLOW_URL="http://file", **own)
    shell = {"AWS_ACCESS_KEY_ID": "foreign", "AWS_SESSION_TOKEN": "foreign"}
    settings = PlatformSettings.load(shell, home=tmp_path)
    assert settings.s3.session_token is None
    assert PlatformSettings.load({**shell, **settings.environ()}, home=tmp_path) == settings


def test_keys_of_the_stack_are_not_sent_to_another_endpoint(tmp_path: Path) -> None:
    own = {"LORAFLEET_S3_ENDPOINT": "http://s3", "AWS_ACCESS_KEY_ID": "own", "AWS_SECRET_ACCESS_KEY": "secret"}
    _write(tmp_path, LORAFLEET_MLFLOW_URL="http://file", **own)
    s3 = PlatformSettings.load({"LORAFLEET_S3_ENDPOINT": "http://other"}, home=tmp_path).s3
    assert (s3.endpoint, s3.access_key_id, s3.secret_access_key) == ("http://other", None, None)
    # Whoever names the stack's own endpoint means the stack's keys.
    same = PlatformSettings.load({"LORAFLEET_S3_ENDPOINT": "http://s3"}, home=tmp_path).s3
    assert (same.access_key_id, same.secret_access_key) == ("own", "secret")


def test_audit_log_has_keys_of_its_own_where_both_are_given(tmp_path: Path) -> None:
    given = {
        "LORAFLEET_MLFLOW_URL": "http://managed",
        "LORAFLEET_S3_ENDPOINT": "http://s3",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_SESSION_TOKEN": "token",
    }
    assert PlatformSettings.load(given, home=tmp_path).audit_s3 is None
    pair = {"LORAFLEET_AUDIT_S3_KEY": "audit", "LORAFLEET_AUDIT_S3_SECRET": "hidden"}
    settings = PlatformSettings.load({**given, **pair}, home=tmp_path)
    assert settings.audit_s3 == S3Settings("http://s3", "audit", "hidden")
    assert settings.s3.access_key_id == "key"
    assert "hidden" not in repr(settings)
    assert PlatformSettings.load(settings.environ(), home=tmp_path) == settings


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("LORAFLEET_AUDIT_S3_KEY", "LORAFLEET_AUDIT_S3_SECRET"),
        ("LORAFLEET_AUDIT_S3_SECRET", "LORAFLEET_AUDIT_S3_KEY"),
    ],
)
def test_half_a_pair_of_the_audit_log_is_refused_by_name(tmp_path: Path, name: str, missing: str) -> None:
    with pytest.raises(InvalidSetting, match=f"{name} is set without {missing}: set both, or neither"):
        PlatformSettings.load({"LORAFLEET_MLFLOW_URL": "http://managed", name: "x"}, home=tmp_path)


def test_no_registry_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"LORAFLEET_MLFLOW_URL.*lorafleet up"):
        PlatformSettings.load({}, home=tmp_path)
    assert PlatformSettings.load({}, home=tmp_path, registry_required=False).mlflow_url == ""


def test_settings_survive_the_way_through_an_environment(tmp_path: Path) -> None:
    _write(tmp_path, LORAFLEET_MLFLOW_URL="http://file", LORAFLEET_PODS="http://a/, http://b", LORAFLEET_GATE_KEY="k")
    settings = PlatformSettings.load({}, home=tmp_path)
    assert settings.pods == ("http://a", "http://b")
    assert PlatformSettings.load(settings.environ(), home=tmp_path) == settings


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "stack.env").write_text("A=1\nnonsense\n")
    with pytest.raises(InvalidSetting, match=r"stack\.env:2"):
        read_env_file(tmp_path / "stack.env")


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    _write(tmp_path, LORAFLEET_MLFLOW_URL="http://file", LORAFLEET_GATE_KEY="hidden", AWS_SECRET_ACCESS_KEY="hidden")
    assert "hidden" not in repr(PlatformSettings.load({}, home=tmp_path))


def test_no_gate_key_names_the_variable(tmp_path: Path) -> None:
    _write(tmp_path, LORAFLEET_MLFLOW_URL="http://file")
    with pytest.raises(InvalidSetting, match="LORAFLEET_GATE_KEY"):
        PlatformSettings.load({}, home=tmp_path).require_gate_key()


def test_credentials_of_the_registry_are_read_handed_on_and_not_shown(tmp_path: Path) -> None:
    given = {
        "LORAFLEET_MLFLOW_URL": "http://managed",
        "MLFLOW_TRACKING_USERNAME": "ann",
        "MLFLOW_TRACKING_PASSWORD": "hidden-pass",
        "MLFLOW_TRACKING_TOKEN": "hidden-token",
    }
    settings = PlatformSettings.load(given, home=tmp_path)
    # Of both, the password, as MLflow's own client does.
    assert settings.registry_endpoint().headers == {"Authorization": "Basic YW5uOmhpZGRlbi1wYXNz"}
    assert "hidden" not in repr(settings)
    assert PlatformSettings.load(settings.environ(), home=tmp_path) == settings
    by_token = PlatformSettings.load({**given, "MLFLOW_TRACKING_PASSWORD": ""}, home=tmp_path)
    assert by_token.registry_endpoint({"X-Caller": "me"}).headers == {
        "X-Caller": "me",
        "Authorization": "Bearer hidden-token",
    }


def test_a_password_in_the_address_of_the_registry_is_refused_untold(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="MLFLOW_TRACKING_PASSWORD") as refused:
        PlatformSettings.load({"LORAFLEET_MLFLOW_URL": "http://ann:hidden@managed"}, home=tmp_path)
    assert "hidden" not in str(refused.value)


def test_credentials_of_another_registry_do_not_reach_the_embedded_one(tmp_path: Path) -> None:
    _write(tmp_path, LORAFLEET_MLFLOW_URL="http://file")
    settings = PlatformSettings.load({"MLFLOW_TRACKING_TOKEN": "of-another"}, home=tmp_path)
    assert settings.registry_endpoint().headers == {}
    assert "MLFLOW_TRACKING_TOKEN" not in settings.environ()


def test_file_that_is_no_text_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "stack.env").write_bytes(b"\xa0\xff")
    with pytest.raises(InvalidSetting, match=r"stack\.env is no text: delete it, and `lorafleet up` writes it anew"):
        PlatformSettings.load(environ={}, home=tmp_path)


def test_empty_home_is_the_default_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = PlatformSettings.load(environ={"LORAFLEET_HOME": ""}, registry_required=False)
    assert settings.home == tmp_path / ".lorafleet"
