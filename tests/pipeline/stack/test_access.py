"""What MLflow's port opens to whoever reaches it: the bucket of artifacts, no other bucket, and no folder."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from lorafleet_contract.tags import Tag
from lorafleet_pipeline.registry.audit import AuditLog
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.stack.component import Component
from lorafleet_pipeline.stack.components import StackComponents
from lorafleet_pipeline.stack.home import StackHome
from lorafleet_pipeline.stack.options import StackOptions
from lorafleet_pipeline.stack.ports import choose_ports, free_port
from lorafleet_pipeline.stack.seaweedfs import ARTIFACT_BUCKET, AUDIT_BUCKET, BUCKETS, free_ports
from lorafleet_pipeline.stack.secrets import Secrets
from lorafleet_pipeline.storage import Storage
from tests.pipeline.registry.fake_pod import BASE_DIGEST
from tests.pipeline.registry.fleet import digest_of, eventually

_API = "/api/2.0/mlflow"
_PREFIXES = ("/api", "/ajax-api")
_CONTENT = b"content of an object"
_CLOSED = tuple(name for name in BUCKETS if name != ARTIFACT_BUCKET)
_RENEWED = ("s3_mlflow_key", "s3_mlflow_secret", "s3_audit_key", "s3_audit_secret")


@dataclass(frozen=True)
class Stranger:
    """Somebody on this machine without any credentials, before MLflow's port."""

    components: StackComponents
    http: httpx.Client

    def call(self, path: str, **body: Any) -> dict[str, Any]:
        return dict(self.http.post(f"{_API}/{path}", json=body).raise_for_status().json())

    def version_from(self, source: str, **tags: str) -> str:
        """The model of a version whose files lie at an address."""
        name = f"model-{uuid.uuid4().hex[:8]}"
        self.call("registered-models/create", name=name)
        self.call(
            "model-versions/create", name=name, source=source, tags=[{"key": key, "value": tags[key]} for key in tags]
        )
        return name

    def run_at(self, location: str) -> str:
        """Id of a run whose artifacts lie below an address."""
        experiment = self.call("experiments/create", name=uuid.uuid4().hex, artifact_location=location)
        return str(self.call("runs/create", experiment_id=experiment["experiment_id"])["run"]["info"]["run_id"])

    def run_from_before(self, location: str) -> str:
        """Id of a run in an experiment that stands in the database already, with whatever location."""
        experiment_id = self.call("experiments/create", name=uuid.uuid4().hex)["experiment_id"]
        with closing(sqlite3.connect(self.components.mlflow.database.file)) as database, database:
            change = "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?"
            database.execute(change, (location, int(experiment_id)))
        return str(self.call("runs/create", experiment_id=experiment_id)["run"]["info"]["run_id"])

    def upload(self, run_id: str) -> httpx.Response:
        """What MLflow answers to a file for a run, put through its interface."""
        upload = {"run_uuid": run_id, "path": "note.txt"}
        return self.http.post("/ajax-api/2.0/mlflow/upload-artifact", params=upload, content=b"mine")

    def keys(self, bucket: str) -> set[str]:
        """Keys of a bucket's objects, as the platform sees them."""
        return {item["Key"] for item in self.components.s3.client().list_objects_v2(Bucket=bucket).get("Contents", [])}


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stranger]:
    """S3 and MLflow as the stack starts them, on a home from before MLflow had keys of its own."""
    home = StackHome(tmp_path_factory.mktemp("access") / "home")
    home.create()
    Secrets.load_or_create(home.secrets)
    known = json.loads(home.secrets.read_text())
    home.secrets.write_text(json.dumps({name: value for name, value in known.items() if name not in _RENEWED}))
    ports = choose_ports(home.ports, {"mlflow": free_port(), **free_ports()}, lambda port: False).ports
    options = StackOptions(components=("s3", "mlflow"))
    components = StackComponents(home, options, ports, Secrets.load_or_create(home.secrets))
    with ExitStack() as running:
        for plan in components.plans("an-id"):
            component = Component(plan)
            component.prepare()
            component.start()
            running.callback(component.stop)
            component.wait_ready()
        for bucket in BUCKETS:
            components.s3.client().put_object(Bucket=bucket, Key="files/one.txt", Body=_CONTENT)
        http = httpx.Client(base_url=components.mlflow.url, trust_env=False, timeout=60.0)
        yield Stranger(components, running.enter_context(http))


def test_artifacts_of_a_version_are_shown_from_their_own_bucket(stranger: Stranger) -> None:
    name = stranger.version_from(f"s3://{ARTIFACT_BUCKET}/files")
    answer = stranger.http.get("/model-versions/get-artifact", params={"name": name, "version": "1", "path": "one.txt"})
    assert answer.status_code == httpx.codes.OK
    assert answer.content == _CONTENT


@pytest.mark.parametrize("bucket", _CLOSED)
def test_version_from_another_bucket_shows_nothing(stranger: Stranger, bucket: str) -> None:
    name = stranger.version_from(f"s3://{bucket}/files")
    answer = stranger.http.get("/model-versions/get-artifact", params={"name": name, "version": "1", "path": "one.txt"})
    assert answer.is_error
    assert _CONTENT not in answer.content


@pytest.mark.parametrize("bucket", _CLOSED)
def test_run_in_another_bucket_is_neither_listed_nor_written(stranger: Stranger, bucket: str) -> None:
    run_id = stranger.run_at(f"s3://{bucket}/files")
    listed = stranger.http.get(f"{_API}/artifacts/list", params={"run_id": run_id})
    assert listed.is_error
    before = stranger.keys(bucket)
    assert stranger.upload(run_id).is_error
    assert stranger.keys(bucket) == before


def test_file_put_through_the_interface_lands_in_the_bucket_of_artifacts(stranger: Stranger) -> None:
    run_id = stranger.run_at(f"s3://{ARTIFACT_BUCKET}/runs")
    assert stranger.upload(run_id).status_code == httpx.codes.OK
    assert f"runs/{run_id}/artifacts/note.txt" in stranger.keys(ARTIFACT_BUCKET)


@pytest.mark.parametrize("prefix", _PREFIXES)
@pytest.mark.parametrize(
    "location",
    [
        "{folder}",
        "file://{folder}",
        "FILE://{folder}",
        "file:{folder}",
        " file://{folder}",
        "fi\tle://{folder}",
        "file://localhost{folder}",
        "file:relative",
        "relative/folder",
        "../relative",
        # One letter is a drive to MLflow, and the rest a path.
        "x:/../..{folder}",
        "dbfs:{folder}",
        "RUNS:/0123456789abcdef0123456789abcdef/files",
        "models:/adapter/1",
    ],
)
def test_experiment_in_a_folder_is_refused(stranger: Stranger, tmp_path: Path, prefix: str, location: str) -> None:
    value = location.format(folder=tmp_path)
    body = {"name": uuid.uuid4().hex, "artifact_location": value}
    answer = stranger.http.post(f"{prefix}/2.0/mlflow/experiments/create", json=body)
    _assert_refused(answer, value)
    listed = stranger.http.get(f"{_API}/experiments/get-by-name", params={"experiment_name": body["name"]})
    assert listed.status_code == httpx.codes.NOT_FOUND


def test_experiment_in_a_folder_is_refused_however_it_is_asked_for(stranger: Stranger, tmp_path: Path) -> None:
    path = f"{_API}/experiments/create"
    name = uuid.uuid4().hex
    in_camel_case = {"name": name, "artifactLocation": str(tmp_path)}
    twice_encoded = json.dumps(json.dumps({"name": name, "artifact_location": str(tmp_path)}))
    last_of_two = f'{{"name": "{name}", "artifact_location": "s3://mlflow/a", "artifact_location": "{tmp_path}"}}'
    json_of_a_kind = {"Content-Type": "application/json; charset=utf-8"}
    _assert_refused(stranger.http.post(path, json=in_camel_case), str(tmp_path))
    for content in (twice_encoded, last_of_two):
        _assert_refused(stranger.http.post(path, content=content, headers=json_of_a_kind), str(tmp_path))


@pytest.mark.parametrize("prefix", _PREFIXES)
@pytest.mark.parametrize("location", [f"s3://{ARTIFACT_BUCKET}/mine", "gs://bucket/mine", "mlflow-artifacts:/mine", ""])
def test_experiment_in_an_object_store_is_taken(stranger: Stranger, prefix: str, location: str) -> None:
    body = {"name": uuid.uuid4().hex, "artifact_location": location}
    answer = stranger.http.post(f"{prefix}/2.0/mlflow/experiments/create", json=body)
    assert answer.status_code == httpx.codes.OK


def test_folder_of_an_experiment_from_before_is_neither_listed_nor_read_nor_written(
    stranger: Stranger, tmp_path: Path
) -> None:
    run_id = stranger.run_from_before(str(tmp_path))
    own = tmp_path / run_id / "artifacts" / "own.txt"
    own.parent.mkdir(parents=True)
    own.write_bytes(_CONTENT)
    _assert_refused(stranger.upload(run_id), str(tmp_path))
    _assert_refused(stranger.http.get(f"{_API}/artifacts/list", params={"run_id": run_id}), str(tmp_path))
    _assert_refused(stranger.http.get("/get-artifact", params={"run_id": run_id, "path": "own.txt"}), str(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [own]


def test_folder_that_a_tag_of_a_trace_names_is_not_read(stranger: Stranger, tmp_path: Path) -> None:
    (tmp_path / "traces.json").write_bytes(_CONTENT)
    body = {"experiment_id": "0", "timestamp_ms": 1, "request_metadata": [], "tags": []}
    trace_id = stranger.call("traces", **body)["trace_info"]["request_id"]
    tag = {"key": "mlflow.artifactLocation", "value": str(tmp_path)}
    stranger.http.patch(f"{_API}/traces/{trace_id}/tags", json=tag).raise_for_status()
    answer = stranger.http.get("/ajax-api/2.0/mlflow/get-trace-artifact", params={"request_id": trace_id})
    _assert_refused(answer, str(tmp_path))


def test_server_whose_own_artifacts_are_in_a_folder_takes_folders(stranger: Stranger, tmp_path: Path) -> None:
    home = StackHome(tmp_path / "home")
    home.create()
    own = replace(stranger.components, home=home, ports={**stranger.components.ports, "mlflow": free_port()})
    _, plan = own.plans("another-id")
    root = plan.command.index("--default-artifact-root") + 1
    component = Component(
        replace(plan, command=(*plan.command[:root], str(tmp_path / "root"), *plan.command[root + 1 :]))
    )
    with ExitStack() as running:
        component.start()
        running.callback(component.stop)
        component.wait_ready()
        http = httpx.Client(base_url=own.mlflow.url, trust_env=False, timeout=60.0)
        developer = Stranger(own, running.enter_context(http))
        run_id = developer.run_at(str(tmp_path / "mine"))
        assert developer.upload(run_id).status_code == httpx.codes.OK
    assert (tmp_path / "mine" / run_id / "artifacts" / "note.txt").read_bytes() == b"mine"


def test_controller_inside_mlflow_writes_the_audit_log_all_the_same(stranger: Stranger) -> None:
    tags = {Tag.LORA_DIGEST.value: digest_of(1), Tag.LORA_BASE_DIGEST.value: BASE_DIGEST}
    name = stranger.version_from(f"s3://{ARTIFACT_BUCKET}/files", **tags)
    stranger.call("registered-models/alias", name=name, alias="champion", version="1")
    settings = PlatformSettings.load(stranger.components.environment())
    log = AuditLog(Storage(settings.s3), f"s3://{AUDIT_BUCKET}")
    eventually(lambda: [entry.after for entry in log.read(name) if entry.what == "champion"] == ["1"], "the entry")


def _assert_refused(answer: httpx.Response, location: str) -> None:
    assert answer.status_code == httpx.codes.BAD_REQUEST, answer.text
    error = answer.json()
    assert error["error_code"] == "INVALID_PARAMETER_VALUE"
    assert repr(location)[1:-1] in error["message"]
    assert "object store" in error["message"]


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "config"), ("PUT", "config"), ("POST", "skills/install"), ("POST", "message")]
)
def test_nobody_reaches_the_assistant(stranger: Stranger, method: str, path: str) -> None:
    answer = stranger.http.request(method, f"/ajax-api/3.0/mlflow/assistant/{path}", json={})
    assert answer.status_code in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED)
