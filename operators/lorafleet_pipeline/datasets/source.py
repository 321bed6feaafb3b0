"""Rows at an address: a local file, `s3://bucket/key`, or `hf://organisation/name[/config][:split]`.

Knows jsonl, csv and parquet. Errors name the address and the line, never what stands there.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isnan
from pathlib import PurePosixPath
from typing import Any

from lorafleet_pipeline.exceptions import DatasetUnreadable, StorageError
from lorafleet_pipeline.storage import Storage

HUB_SCHEME = "hf://"
MAX_FIELD_CHARS = 16 << 20
"""Longest csv field: the csv module's own limit of 128 KiB is less than a long document."""


@dataclass(frozen=True)
class SourceRow:
    """One row and its place in the source: the line of a text file, else the position, from 1."""

    number: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """Everything that stood at one address."""

    address: str
    columns: tuple[str, ...]
    rows: tuple[SourceRow, ...]
    file_bytes: int


def load_source(address: str, storage: Storage) -> Source:
    """Read all rows of an address.

    Raises:
        DatasetUnreadable: the format is unknown, or the file does not follow it; names the line.
        StorageError: the address cannot be read.
    """
    if address.startswith(HUB_SCHEME):
        rows, size = _hub_rows(address)
    else:
        parse = _parser(address)
        data = storage.read_bytes(address)
        rows, size = list(parse(address, data)), len(data)
    columns = tuple(dict.fromkeys(column for row in rows for column in row.values))
    return Source(address, columns, tuple(_without_nan(row) for row in rows), size)


def _without_nan(row: SourceRow) -> SourceRow:
    """The row with nulls for NaN, which is how many tables write a number that is missing."""
    missing = [name for name, value in row.values.items() if isinstance(value, float) and isnan(value)]
    return SourceRow(row.number, {**row.values, **dict.fromkeys(missing)}) if missing else row


def _parser(address: str) -> Callable[[str, bytes], Iterator[SourceRow]]:
    suffix = PurePosixPath(address).suffix.lower()
    parser = _PARSERS.get(suffix)
    if parser is None:
        raise DatasetUnreadable(
            f"{address} ends in {suffix or 'no suffix'}: convert it to one of {', '.join(SUFFIXES)}"
        )
    return parser


def _jsonl(address: str, data: bytes) -> Iterator[SourceRow]:
    # Split at line feeds only: Unicode's other line separators are legal inside a JSON string.
    for number, line in enumerate(_text(address, data).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            if "\\u" in line:
                _require_text(values)
        except UnicodeEncodeError:
            raise DatasetUnreadable(
                f"{address}:{number} holds half of a surrogate pair, which is no text: mend or remove the line"
            ) from None
        except (ValueError, RecursionError) as error:
            raise DatasetUnreadable(
                f"{address}:{number} is no JSON (column {getattr(error, 'colno', '?')}): mend or remove the line"
            ) from None  # The cause carries the line's content, and a traceback would print it.
        if not isinstance(values, dict):
            raise DatasetUnreadable(
                f"{address}:{number} is a JSON {type(values).__name__}: write one object of columns a line"
            )
        yield SourceRow(number, values)


def _require_text(values: object) -> None:
    """Raises UnicodeEncodeError for what JSON can escape and no file can hold."""
    json.dumps(values, ensure_ascii=False).encode()


def _csv(address: str, data: bytes) -> Iterator[SourceRow]:
    reader = csv.reader(io.StringIO(_text(address, data), newline=""), strict=True)
    csv.field_size_limit(MAX_FIELD_CHARS)
    try:
        header = next(reader, [])
        _check_header(address, header)
        start = reader.line_num + 1
        for fields in reader:
            if fields and len(fields) != len(header):
                raise DatasetUnreadable(
                    f"{address}:{start} has {len(fields)} fields, the header names {len(header)}: "
                    "mend the line, or quote its commas"
                )
            if fields:
                yield SourceRow(start, dict(zip(header, fields, strict=True)))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DatasetUnreadable(f"{address}:{reader.line_num} is no csv ({error}): mend the line's quotes") from None


def _check_header(address: str, header: list[str]) -> None:
    if not header or not all(name.strip() for name in header) or len(set(header)) != len(header):
        raise DatasetUnreadable(f"{address}:1 is no csv header: give every column one name of its own")


def _parquet(address: str, data: bytes) -> Iterator[SourceRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise DatasetUnreadable(
            f"{address} is no whole parquet file ({type(error).__name__}): write it again"
        ) from None
    try:
        rows = table.to_pylist()
    except (ValueError, OverflowError):
        raise DatasetUnreadable(
            f"{address} holds a time that Python cannot express: mend it, or write the column as text"
        ) from None
    for number, values in enumerate(rows, start=1):
        yield SourceRow(number, values)


_PARSERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
SUFFIXES = tuple(_PARSERS)
"""Suffixes of the formats that can be read."""


def _text(address: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetUnreadable(f"{address}:{line} is not UTF-8: convert the file to UTF-8") from None


def split_hub(address: str) -> tuple[str, str | None, str]:
    """Dataset id, configuration and split of a hub address; the split is `train` unless named.

    Raises:
        DatasetUnreadable: the address is not of the form.
    """
    path, _, split = address.removeprefix(HUB_SCHEME).partition(":")
    parts = path.split("/")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise DatasetUnreadable(f"{address} is no hub dataset: write hf://organisation/name[/config][:split]")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or "train"


def _hub_rows(address: str) -> tuple[list[SourceRow], int]:
    name, config, split = split_hub(address)
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from datasets.utils.logging import disable_progress_bar

    # The base of what the hub's client raises; which library makes its requests changes from version to version.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    disable_progress_bar()
    try:
        table = load_dataset(name, config, split=split)
    except DatasetNotFoundError as error:
        raise DatasetUnreadable(
            f"{address} is not on the hub, or not for everyone: correct the name, or set HF_TOKEN"
        ) from error
    except (DatasetsError, FileNotFoundError, ValueError, RuntimeError) as error:
        raise DatasetUnreadable(
            f"{address} cannot be loaded ({type(error).__name__}): check config and split, or copy the files to S3"
        ) from None  # The cause may quote a row.
    except (OSError, HTTPError) as error:
        raise StorageError(
            f"{address} could not be fetched ({type(error).__name__}): check network and disk, or copy the files to S3"
        ) from error
    rows = [SourceRow(number, values) for number, values in enumerate(table, start=1)]
    return rows, int(table.info.download_size or 0)
