from __future__ import annotations

from pathlib import Path

import pytest

from lorafleet_contract.exceptions import InvalidName
from lorafleet_pipeline.datasets.source import load_source
from lorafleet_pipeline.datasets.upload import upload_dataset
from lorafleet_pipeline.exceptions import DatasetUnreadable
from lorafleet_pipeline.settings import S3Settings
from lorafleet_pipeline.storage import Storage
from tests.pipeline.datasets.planted import clean_rows, make_settings, write_jsonl, write_splits
from tests.services import RunningS3


def test_folder_of_splits_goes_to_s3(tmp_path: Path, s3: RunningS3) -> None:
    write_splits(tmp_path / "mine", train=clean_rows(5), test=clean_rows(2, 10))
    (tmp_path / "mine" / "README.md").write_text("not rows")
    keys = S3Settings(endpoint=s3.endpoint, access_key_id=s3.access_key, secret_access_key=s3.secret_key)
    section = upload_dataset(tmp_path / "mine", "mine", make_settings(tmp_path, s3=keys, datasets_url="s3://datasets"))
    assert section.train == "s3://datasets/mine/train.jsonl"
    assert section.test == "s3://datasets/mine/test.jsonl"
    assert section.validation is None
    assert [dict(row.values) for row in load_source(section.train, Storage(keys)).rows] == clean_rows(5)


@pytest.mark.parametrize("as_folder", [True, False])
def test_single_file_is_train_whatever_its_name(tmp_path: Path, as_folder: bool) -> None:
    path = tmp_path / "mine" / "tickets.JSONL"
    write_jsonl(path, clean_rows(3))
    section = upload_dataset(path.parent if as_folder else path, "mine", make_settings(tmp_path))
    assert section.train == str(tmp_path / "datasets" / "mine" / "train.jsonl")
    assert len(load_source(section.train, Storage(S3Settings())).rows) == 3


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ((), "has no train file among 0"),
        (("a.jsonl", "b.csv"), "has no train file among 2"),
        (("train.jsonl", "train.csv"), "holds train.csv and train.jsonl: keep one"),
    ],
)
def test_ambiguous_folder_says_what_to_do(tmp_path: Path, files: tuple[str, ...], says: str) -> None:
    (tmp_path / "mine").mkdir()
    for name in files:
        (tmp_path / "mine" / name).write_text("")
    with pytest.raises(DatasetUnreadable, match=says):
        upload_dataset(tmp_path / "mine", "mine", make_settings(tmp_path))


def test_absent_folder_foreign_format_and_bad_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetUnreadable, match="does not exist"):
        upload_dataset(tmp_path / "nothing", "mine", make_settings(tmp_path))
    (tmp_path / "rows.xlsx").write_text("")
    with pytest.raises(DatasetUnreadable, match=r"ends in \.xlsx: convert it to one of \.csv, \.jsonl, \.parquet"):
        upload_dataset(tmp_path / "rows.xlsx", "mine", make_settings(tmp_path))
    with pytest.raises(InvalidName):
        upload_dataset(tmp_path / "rows.xlsx", "../other", make_settings(tmp_path))
