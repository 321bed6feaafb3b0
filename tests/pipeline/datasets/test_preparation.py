from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lorafleet_pipeline.datasets.dataset import Split
from lorafleet_pipeline.datasets.preparation import prepare, read_prepared
from lorafleet_pipeline.exceptions import DatasetUnreadable
from lorafleet_pipeline.run_folder import RunFolder
from tests.pipeline.datasets.planted import Row, clean_rows, make_settings, make_spec, write_jsonl, write_splits

RUN = "run"


def _three(folder: Path, **changes: list[Row]) -> dict[str, str]:
    splits = {"train": clean_rows(40), "validation": clean_rows(10, 100), "test": clean_rows(12, 200)}
    return write_splits(folder, **(splits | changes))


def _run(folder: Path, key: str = RUN) -> RunFolder:
    return RunFolder.of(folder / "work", "planted", key)


def test_templates_are_rendered_and_read_back(tmp_path: Path) -> None:
    dataset = prepare(make_spec(_three(tmp_path)), _run(tmp_path), make_settings(tmp_path))
    assert dataset.train[0].prompt == f"Text: {clean_rows(1)[0]['text']}\nLabel:"
    assert dataset.train[0].completion == " old\n"
    assert read_prepared(_run(tmp_path)) == dataset
    manifest = json.loads((_run(tmp_path).dataset / "manifest.json").read_text())
    assert manifest["digest"] == dataset.digest
    assert manifest["splits"]["test"]["examples"] == 12
    assert manifest["splits"]["test"]["file_bytes"] == (tmp_path / "test.jsonl").stat().st_size


def test_missing_splits_are_taken_from_train_and_share_no_input(tmp_path: Path) -> None:
    rows = clean_rows(60) + [{**row, "text": row["text"].upper() + "!"} for row in clean_rows(60)]
    spec = make_spec({"train": write_jsonl(tmp_path / "all.jsonl", rows)})
    dataset = prepare(spec, _run(tmp_path), make_settings(tmp_path))
    assert [len(dataset.split(split)) for split in Split] == [102, 6, 12]
    texts = [
        {str(example.variables["text"]).rstrip("!").lower() for example in dataset.split(split)} for split in Split
    ]
    assert sum(map(len, texts)) == len(set().union(*texts))
    assert prepare(spec, _run(tmp_path, "again"), make_settings(tmp_path)) == dataset


def test_only_the_missing_split_is_taken_from_train(tmp_path: Path) -> None:
    addresses = _three(tmp_path)
    del addresses["validation"]
    dataset = prepare(make_spec(addresses), _run(tmp_path), make_settings(tmp_path))
    assert [len(dataset.split(split)) for split in Split] == [38, 2, 12]


def test_train_rows_that_recur_later_are_left_out_and_counted(tmp_path: Path) -> None:
    addresses = _three(tmp_path, test=[*clean_rows(12, 200), *clean_rows(2)], validation=clean_rows(10, 2))
    dataset = prepare(make_spec(addresses), _run(tmp_path), make_settings(tmp_path))
    assert len(dataset.train) == 40 - 12
    assert dataset.facts[Split.TRAIN].removed == {"recurs in a later split": 12}
    assert len(dataset.validation) == 10
    assert len(dataset.test) == 14


def test_limit_takes_the_same_train_rows_each_time(tmp_path: Path) -> None:
    addresses: dict[str, Any] = {**_three(tmp_path), "limit": 15}
    first = prepare(make_spec(addresses), _run(tmp_path), make_settings(tmp_path))
    assert len(first.train) == 15
    assert first.facts[Split.TRAIN].removed == {"over dataset.limit": 25}
    assert [example.row for example in first.train] == sorted(example.row for example in first.train)
    assert prepare(make_spec(addresses), _run(tmp_path, "again"), make_settings(tmp_path)).digest == first.digest
    other = prepare(make_spec({**addresses, "seed": 1}), _run(tmp_path, "other"), make_settings(tmp_path))
    assert other.digest != first.digest


def test_digest_follows_the_text_and_not_the_file(tmp_path: Path) -> None:
    first = prepare(make_spec(_three(tmp_path)), _run(tmp_path), make_settings(tmp_path))
    moved = _three(tmp_path / "moved", train=[{**row, "note": "unused"} for row in clean_rows(40)])
    assert prepare(make_spec(moved), _run(tmp_path, "moved"), make_settings(tmp_path)).digest == first.digest
    changed = _three(tmp_path / "changed", train=clean_rows(41))
    assert prepare(make_spec(changed), _run(tmp_path, "changed"), make_settings(tmp_path)).digest != first.digest


def test_template_that_names_an_absent_column_lists_those_there_are(tmp_path: Path) -> None:
    spec = make_spec(_three(tmp_path), prompt="Text: {{ txet }}\nLabel:")
    with pytest.raises(DatasetUnreadable) as caught:
        prepare(spec, _run(tmp_path), make_settings(tmp_path))
    message = str(caught.value)
    assert "prompt template 'Text: {{ txet }}\\nLabel:' names column 'txet'" in message
    assert "it has 'text', 'label'" in message
    assert not _run(tmp_path).dataset.exists()


def test_column_absent_from_test_alone_is_found(tmp_path: Path) -> None:
    addresses = _three(tmp_path, test=[{"text": row["text"]} for row in clean_rows(12, 200)])
    with pytest.raises(DatasetUnreadable, match=r"names column 'label', which test at .*test\.jsonl"):
        prepare(make_spec(addresses), _run(tmp_path), make_settings(tmp_path))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_empty_split_is_named(tmp_path: Path, split: str) -> None:
    with pytest.raises(DatasetUnreadable, match=f"the {split} split is empty .*dataset.{split}"):
        prepare(make_spec(_three(tmp_path, **{split: []})), _run(tmp_path), make_settings(tmp_path))


def test_train_that_is_whole_in_test_leaves_nothing(tmp_path: Path) -> None:
    addresses = _three(tmp_path, train=clean_rows(5), test=clean_rows(5))
    with pytest.raises(DatasetUnreadable, match="the train split is empty once rows that recur"):
        prepare(make_spec(addresses), _run(tmp_path), make_settings(tmp_path))


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"validation_fraction": 0.0}, "dataset.validation_fraction above 0"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "sum to less than 1"),
    ],
)
def test_fractions_that_leave_a_split_empty_are_refused(tmp_path: Path, section: Row, says: str) -> None:
    spec = make_spec({"train": write_jsonl(tmp_path / "all.jsonl", clean_rows(40)), **section})
    with pytest.raises(DatasetUnreadable, match=says):
        prepare(spec, _run(tmp_path), make_settings(tmp_path))


def test_row_on_which_the_template_fails_is_named_and_not_quoted(tmp_path: Path) -> None:
    rows = [*clean_rows(3), {"text": {"secret-key": 1}, "label": "old"}]
    spec = make_spec(_three(tmp_path, train=rows), prompt="{{ text[label] if text is mapping else text }}")
    with pytest.raises(DatasetUnreadable, match=r"train\.jsonl:4: the prompt template .* fails on this row") as caught:
        prepare(spec, _run(tmp_path), make_settings(tmp_path))
    assert "secret-key" not in str(caught.value)


def test_prepared_file_that_was_edited_is_refused(tmp_path: Path) -> None:
    prepare(make_spec(_three(tmp_path)), _run(tmp_path), make_settings(tmp_path))
    path = _run(tmp_path).dataset / "test.jsonl"
    path.write_text(path.read_text().replace(" old", " new", 1))
    with pytest.raises(DatasetUnreadable, match="was changed since it was validated"):
        read_prepared(_run(tmp_path))


def test_reading_before_preparing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetUnreadable, match="validate the run's dataset first"):
        read_prepared(_run(tmp_path))


def test_examples_that_travel_are_validation_inputs_without_personal_data(tmp_path: Path) -> None:
    rows = [{"text": "mail ada@example.org about case 5", "label": "old"}, *clean_rows(3, 100)]
    dataset = prepare(make_spec(_three(tmp_path, validation=rows)), _run(tmp_path), make_settings(tmp_path))
    assert dataset.prompt_examples() == tuple({"text": row["text"]} for row in clean_rows(2, 100))


@pytest.mark.parametrize("hidden", ["ada@example.org", "GB82 WEST 1234 5698 7654 32", "+49 30 901820"])
@pytest.mark.parametrize(
    "ticket",
    [
        {"text": "case 5 of\n%s"},
        {"text": "case", "from": {"by": ["x", "mail\n%s"]}},
        {"text": "case", "%s": 1},
    ],
)
def test_examples_that_travel_hold_no_personal_data_that_the_prompt_leaves_out(
    tmp_path: Path, ticket: Row, hidden: str
) -> None:
    def row(number: int) -> Row:
        return {"id": number, "ticket": {"text": "case"}, "label": "old"}

    planted = json.loads(json.dumps(row(1) | {"ticket": ticket}).replace("%s", hidden))
    splits = {
        "train": map(row, range(10, 20)),
        "validation": [planted, row(2), row(3)],
        "test": map(row, range(20, 25)),
    }
    spec = make_spec(write_splits(tmp_path, **splits), prompt="{{ id }}: {{ ticket.text[:4] }}")
    prepare(spec, _run(tmp_path), make_settings(tmp_path))
    examples = read_prepared(_run(tmp_path)).prompt_examples()
    assert [example["id"] for example in examples] == [2, 3]


def test_examples_that_travel_are_short_and_plain_json(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"text": "long " * 2000, "label": "old"},
        {"text": math.inf, "label": "old"},
        *clean_rows(1, 100),
    ]
    prepare(make_spec(_three(tmp_path, validation=rows)), _run(tmp_path), make_settings(tmp_path))
    examples = read_prepared(_run(tmp_path)).prompt_examples()
    assert examples == ({"text": clean_rows(1, 100)[0]["text"]},)
