"""Data files: a JSON array, or JSON lines, which are read one at a time; UTF-8, plain or .gz."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from drift.common.errors import DataError

LONE_SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)  # or half of a pair: looked at closely
BROKEN_GZ = (EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of a data file, or what is wrong with it.

    Record(place="train.jsonl:7", line=7, value={"numbers": [3, 9, 5], "target": 11})
    """

    place: str  # for messages; in an array "train.json: record 3"
    line: int  # where the record is, from 1; in an array the record's number
    value: dict[str, Any] | DataError  # the error's text begins with the place


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, in order; of JSON lines no more than one is in memory.

    Raises:
        DataError: the file is missing, empty, not UTF-8, not a whole .gz, or an array that is not
            JSON. What is wrong with one line or element alone is in its record.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such data file")
    try:
        yield from _read(path)
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except BROKEN_GZ as error:
        raise DataError(f"{path}: not a whole .gz file: {error}") from None


def open_data(
    path: Path,
    mode: Literal["rt", "rb", "wt"],
    encoding: str | None = None,
    newline: str | None = None,
) -> IO[Any]:
    """Open a file that is packed if its name ends in .gz."""
    if path.suffix.lower() == ".gz":
        return cast(IO[Any], gzip.open(path, mode, encoding=encoding, newline=newline))
    return path.open(mode, encoding=encoding, newline=newline)


def _read(path: Path) -> Iterator[Record]:
    with open_data(path, "rt", encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "").lstrip()
        if not first:
            raise DataError(f"{path}: the data file is empty")
        file.seek(0)
        if first.startswith("["):
            yield from _array(path, file.read())
        else:
            yield from _lines(path, file)


def _not_utf8(path: Path) -> DataError:
    """Where a file is not UTF-8; the decoder itself counts from the last piece it read."""
    offset = 0
    with open_data(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                at = offset + error.start
                return DataError(f"{path}:{number}: not UTF-8 at byte {at}; convert it to UTF-8")
            offset += len(line)
    raise AssertionError(f"{path} is UTF-8 after all")


def _lines(path: Path, lines: Iterator[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            value = _record(place, json.loads(line), careful=bool(LONE_SURROGATE.search(line)))
        except json.JSONDecodeError as error:
            value = DataError(f"{place}: not JSON: {error.msg} at column {error.colno}")
        except (RecursionError, ValueError) as error:
            value = DataError(f"{place}: not JSON that can be read: {error}")
        yield Record(place=place, line=number, value=value)


def _array(path: Path, text: str) -> Iterator[Record]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}"
        raise DataError(f"{place}: not JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: not JSON that can be read: {error}") from None
    if not values:
        raise DataError(f"{path}: the data file is empty")
    careful = bool(LONE_SURROGATE.search(text))
    for number, value in enumerate(values, start=1):
        place = f"{path}: record {number}"
        yield Record(place=place, line=number, value=_record(place, value, careful=careful))


def _record(place: str, value: Any, *, careful: bool) -> dict[str, Any] | DataError:
    """A decoded record, if it is an object whose strings are text; careful: they may not be."""
    if not isinstance(value, dict):
        return DataError(f"{place}: a record is a JSON object, not {type(value).__name__}")
    if careful:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            code = ord(error.object[error.start])
            return DataError(f"{place}: \\u{code:04x} without its other half is no character")
    return value


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


def strings(record: dict[str, Any], field: str) -> list[str]:
    """A list of one or more strings; ValueError says which field is wrong and why."""
    value = record.get(field)
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise ValueError(f"{field}: {value!r} is not a list of one or more strings")
    return value


def text(record: dict[str, Any], field: str) -> str:
    """A string field that may be missing, null or empty; ValueError if it is anything else."""
    value = record.get(field)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{field}: {value!r} is not a string")
    return value or ""
