"""Data files: a JSON array or JSON lines, UTF-8; a fault is reported as `file:line: ...`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drift.errors import DataError


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, record) of each record; for a JSON array the number counts records from 1.

    JSON lines are streamed. Raises DataError: missing, empty, not UTF-8, not JSON, not objects.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such data file")
    try:
        yield from _read(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; convert it to UTF-8") from None


def _read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        start = next((line.lstrip()[0] for line in file if line.strip()), "")
        file.seek(0)
        if not start:
            raise DataError(f"{path}: the data file is empty")
        records = _array(path, file.read()) if start == "[" else _lines(path, file)
        for number, record in records:
            if not isinstance(record, dict):
                kind = type(record).__name__
                raise DataError(f"{path}:{number}: a record is a JSON object, not {kind}")
            yield number, record


def _array(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: not JSON that can be read: {error}") from None
    if not records:
        raise DataError(f"{path}: the data file is empty")
    yield from enumerate(records, start=1)


def _lines(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON: {error.msg}") from None
            except (RecursionError, ValueError) as error:
                raise DataError(f"{path}:{number}: not JSON that can be read: {error}") from None


def integer(record: dict[str, Any], field: str, low: int, high: int) -> int:
    """An integer field within [low, high]; ValueError says which field is wrong and why."""
    if field not in record:
        raise ValueError(f"{field}: missing")
    value = record[field]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{field}: {value!r} is not an integer")
    if not low <= value <= high:
        raise ValueError(f"{field}: {value} is not within {low}..{high}")
    return value


def string(record: dict[str, Any], field: str) -> str:
    """A non-empty string field; ValueError says which field is wrong and why."""
    if field not in record:
        raise ValueError(f"{field}: missing")
    value = record[field]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{field}: {value!r} is not a non-empty string")
    return value
