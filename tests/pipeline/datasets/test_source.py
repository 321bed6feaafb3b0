from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorafleet_pipeline.datasets.source import load_source, split_hub
from lorafleet_pipeline.exceptions import (
    DatasetError,
    DatasetUnreadable,
    ObjectMissing,
    StorageDenied,
    StorageError,
    StorageUnreachable,
)
from lorafleet_pipeline.settings import S3Settings
from lorafleet_pipeline.storage import Storage
from tests.pipeline.datasets.planted import clean_rows, write_jsonl
from tests.services import RunningS3

LOCAL = Storage(S3Settings())
SECRET = "geheimnis-4711"


def _s3_settings(s3: RunningS3) -> S3Settings:
    return S3Settings(endpoint=s3.endpoint, access_key_id=s3.access_key, secret_access_key=s3.secret_key)


def test_formats_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": 'one, "two"\nthree', "label": "a"}, {"text": "vier", "label": "b"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "rows.csv").write_text('text,label\r\n"one, ""two""\nthree",a\r\nvier,b\r\n', newline="")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.csv", "rows.parquet"):
        source = load_source(str(tmp_path / name), LOCAL)
        assert [dict(row.values) for row in source.rows] == rows, name
        assert source.columns == ("text", "label")
        assert source.file_bytes == (tmp_path / name).stat().st_size


def test_rows_carry_their_line_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n{"a": 2, "b": 3}\n')
    (tmp_path / "rows.csv").write_text('a\n"x\ny"\nz\n')
    assert [row.number for row in load_source(str(tmp_path / "rows.jsonl"), LOCAL).rows] == [1, 3]
    assert [row.number for row in load_source(str(tmp_path / "rows.csv"), LOCAL).rows] == [2, 4]


def test_byte_order_mark_and_unicode_line_separators_belong_to_no_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": "x\u2028y"}, ensure_ascii=False).encode() + b"\r\n")
    assert [dict(row.values) for row in load_source(str(path), LOCAL).rows] == [{"a": "x\u2028y"}]


@pytest.mark.parametrize(
    ("name", "content", "place", "says"),
    [
        ("r.jsonl", f'{{"a": 1}}\n{{"a": "{SECRET}"\n'.encode(), ":2 ", "no JSON"),
        ("r.jsonl", f'{{"a": 1}}\n"{SECRET}"\n'.encode(), ":2 ", "one object"),
        ("r.jsonl", b'{"a": 1}\n\n{"a": "' + SECRET.encode() + b'\xff"}\n', ":3 ", "UTF-8"),
        ("r.jsonl", b"[" * 100_000, ":1 ", "no JSON"),
        ("r.jsonl", b'{"a": 1}\n{"a": "' + SECRET.encode() + b' \\ud83d"}\n', ":2 ", "half of a surrogate pair"),
        ("r.csv", f"a,b\n1,2\n3,4,{SECRET}\n".encode(), ":3 ", "3 fields"),
        ("r.csv", f'a,b\n1,"{SECRET}\n'.encode(), ":2 ", "quotes"),
        ("r.csv", b"a,a\n1,2\n", ":1 ", "name of its own"),
        ("r.csv", b"", ":1 ", "header"),
        ("r.parquet", b"PAR1" + SECRET.encode(), "r.parquet ", "write it again"),
        ("r.xlsx", b"", "r.xlsx ", ".jsonl"),
        ("rows", b"", "rows ", "no suffix"),
    ],
)
def test_broken_file_is_named_by_line_and_not_quoted(
    tmp_path: Path, name: str, content: bytes, place: str, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetUnreadable) as caught:
        load_source(str(tmp_path / name), LOCAL)
    message = str(caught.value)
    assert place in message
    assert says in message
    assert SECRET not in message
    assert "\n" not in message
    assert caught.value.__cause__ is None


def test_missing_file_is_named() -> None:
    with pytest.raises(ObjectMissing, match=r"/no/such/rows\.jsonl does not exist"):
        load_source("/no/such/rows.jsonl", LOCAL)


def test_rows_load_from_s3(s3: RunningS3, tmp_path: Path) -> None:
    storage = Storage(_s3_settings(s3))
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, clean_rows(5))
    storage.upload(path, "s3://datasets/source/rows.jsonl")
    source = load_source("s3://datasets/source/rows.jsonl", storage)
    assert [dict(row.values) for row in source.rows] == clean_rows(5)


def test_absent_s3_object_and_wrong_key_and_dead_endpoint_are_told_apart(s3: RunningS3) -> None:
    good = _s3_settings(s3)
    with pytest.raises(ObjectMissing, match=r"s3://datasets/nothing\.jsonl does not exist"):
        load_source("s3://datasets/nothing.jsonl", Storage(good))
    wrong = S3Settings(endpoint=s3.endpoint, access_key_id=s3.access_key, secret_access_key=SECRET)
    with pytest.raises(StorageDenied, match="AWS_SECRET_ACCESS_KEY") as denied:
        load_source("s3://datasets/nothing.jsonl", Storage(wrong))
    assert SECRET not in str(denied.value)
    nobody = S3Settings(endpoint="http://127.0.0.1:9", access_key_id="a", secret_access_key="b")
    with pytest.raises(StorageUnreachable, match="LORAFLEET_S3_ENDPOINT"):
        load_source("s3://datasets/nothing.jsonl", Storage(nobody))


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("hf://org/name", ("org/name", None, "train")),
        ("hf://org/name/main:test", ("org/name", "main", "test")),
        ("hf://org/name:validation", ("org/name", None, "validation")),
    ],
)
def test_hub_address_is_taken_apart(address: str, parts: tuple[str, str | None, str]) -> None:
    assert split_hub(address) == parts


@pytest.mark.parametrize("address", ["hf://name", "hf://a/b/c/d", "hf://org//main"])
def test_malformed_hub_address_says_the_form(address: str) -> None:
    with pytest.raises(DatasetError, match="hf://organisation/name"):
        load_source(address, LOCAL)


def test_missing_numbers_are_nulls_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": NaN, "b": 1.5}\n{"a": null, "b": 2.0}\n')
    table = pa.table({"a": pa.array([math.nan, None]), "b": pa.array([1.5, 2.0])})
    pq.write_table(table, tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.parquet"):
        rows = [dict(row.values) for row in load_source(str(tmp_path / name), LOCAL).rows]
        assert rows == [{"a": None, "b": 1.5}, {"a": None, "b": 2.0}], name


def test_time_that_python_cannot_express_is_an_error_of_the_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([2**60], pa.timestamp("ms"))}), tmp_path / "rows.parquet")
    with pytest.raises(DatasetUnreadable, match=r"rows\.parquet holds a time that Python cannot express"):
        load_source(str(tmp_path / "rows.parquet"), LOCAL)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the hub's library finds datasets by their names, as it does before it asks the hub."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        write_jsonl(tmp_path / "acme" / "tickets" / f"{split}.jsonl", clean_rows(3 if split == "train" else 2))
    return tmp_path / "acme"


def test_rows_load_through_the_hubs_library(hub: Path) -> None:
    source = load_source("hf://acme/tickets", LOCAL)
    assert [dict(row.values) for row in source.rows] == clean_rows(3)
    assert [row.number for row in source.rows] == [1, 2, 3]
    assert source.columns == ("text", "label")
    assert len(load_source("hf://acme/tickets:test", LOCAL).rows) == 2


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("hf://acme/tickets:nothing", r"cannot be loaded \(ValueError\): check config and split"),
        ("hf://acme/tickets/german", r"cannot be loaded \(ValueError\): check config and split"),
        ("hf://acme/script", r"cannot be loaded \(RuntimeError\)"),
        ("hf://acme/broken", r"cannot be loaded \(DatasetGenerationError\)"),
    ],
)
def test_hub_dataset_that_does_not_load_is_one_line(hub: Path, address: str, says: str) -> None:
    for name, content in (("script/script.py", "x = 1"), ("broken/train.jsonl", f'{{"a": 1}}\n{{"{SECRET}')):
        (hub / name).parent.mkdir()
        (hub / name).write_text(content)
    with pytest.raises(DatasetUnreadable, match=says) as caught:
        load_source(address, LOCAL)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_hub_that_is_out_of_reach_is_an_error_of_the_storage(hub: Path) -> None:
    with pytest.raises(StorageError, match=r"hf://acme/elsewhere could not be fetched.*copy the files to S3"):
        load_source("hf://acme/elsewhere", LOCAL)
