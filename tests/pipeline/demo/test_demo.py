"""Which version the demo speaks of, and what it asks base and champion."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lorafleet_contract.aliases import Alias
from lorafleet_contract.manifest import AdapterManifest
from lorafleet_pipeline.datasets.preparation import prepare
from lorafleet_pipeline.demo.demo import champion_of, compare
from lorafleet_pipeline.demo.result import Comparison
from lorafleet_pipeline.exceptions import DemoError
from lorafleet_pipeline.registry.publish import RegisteredVersion
from lorafleet_pipeline.run_folder import RunFolder
from tests.http_server import Server, running
from tests.pipeline.datasets.planted import clean_rows, make_settings, make_spec, write_jsonl
from tests.pipeline.registry.fleet import settings_of

if TYPE_CHECKING:
    from tests.services import RunningMLflow


def test_figures_of_another_version_than_the_runs_are_not_shown(mlflow_server: RunningMLflow, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    settings = settings_of(mlflow_server.s3, tmp_path, mlflow_server.url, ())
    name, client = f"adapter-{uuid.uuid4().hex[:8]}", MlflowClient(settings.mlflow_url)
    client.create_registered_model(name)
    for _ in range(2):
        client.create_model_version(name, "s3://mlflow/nowhere", await_creation_for=0)
    folder = RunFolder.of(tmp_path, name, "run-1")
    folder.registration.parent.mkdir(parents=True)
    folder.registration.write_text(json.dumps(asdict(RegisteredVersion(name, 1, "d", "s3://x", None, "passed"))))
    with pytest.raises(DemoError, match=f"version 1 of {name}, and the champion is none"):
        champion_of(name, folder, settings)
    settings.registry().set_alias(name, Alias.CHAMPION, 2)
    with pytest.raises(DemoError, match=r"the champion is version 2: .*--force"):
        champion_of(name, folder, settings)
    settings.registry().set_alias(name, Alias.CHAMPION, 1)
    assert champion_of(name, folder, settings) == 1


@pytest.mark.parametrize("mail", ["", " to ada@example.org"])
def test_base_and_champion_are_asked_the_same_though_no_example_may_travel(tmp_path: Path, mail: str) -> None:
    rows = {split: clean_rows(5, start) for split, start in (("train", 0), ("validation", 100), ("test", 200))}
    files = {
        split: write_jsonl(tmp_path / f"{split}.jsonl", [{**row, "text": row["text"] + mail} for row in found])
        for split, found in rows.items()
    }
    spec = make_spec(files)
    dataset = prepare(spec, RunFolder.of(tmp_path / "work", spec.name, "run-1"), make_settings(tmp_path))
    prompt = spec.prompt_block(dataset.prompt_examples())
    manifest = AdapterManifest(
        spec.name,
        "sha256:a",
        "base",
        "sha256:b",
        "lora",
        4,
        8.0,
        (),
        "fp32",
        "sha256:d",
        "sha256:s",
        prompt,
        "accuracy",
    )
    asked: list[dict[str, Any]] = []
    server = Server(("127.0.0.1", 0), _echo(asked))
    url = f"http://127.0.0.1:{server.server_address[1]}"
    with running(server):
        comparison = compare(manifest, make_settings(tmp_path, pods=(url,)))
    text = "Hello" if mail else f"Text: {rows['validation'][0]['text']}\nLabel:"
    question = {"prompt": "Hello"} if mail else {"variables": {"text": rows["validation"][0]["text"]}}
    assert comparison == Comparison(prompt=text, base="says the base", champion=f"says {spec.name}")
    common = {"max_tokens": prompt.max_new_tokens, "temperature": 0.0, "stop": ["\n"]}
    assert asked == [
        {"model": "", "prompt": text, **common},
        {"model": spec.name, **question, **common},
    ]


def _echo(asked: list[dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    """A pod that remembers what it was asked and answers by the name of what it was asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            choice = {"text": f" says {body['model'] or 'the base'}", "finish_reason": "length"}
            document = {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
            data = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

    return Handler
