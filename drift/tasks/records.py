"""Data files: a JSON array or JSON lines, UTF-8, plain or .gz, read one record at a time."""

import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from drift.common.errors import DataError

CHUNK = 1 << 16  # characters
BLANKS = re.compile(r"[ \t\n\r]*")
LONE_SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)  # or half of a pair: looked at closely
BROKEN_GZ = (EOFError, zlib.error, gzip.BadGzipFile)
CUT = 16  # a decoder that fails this close to the end of what was read may lack the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of a data file, or what is wrong with it.

    Record(place="train.jsonl:7", line=7, value={"numbers": [3, 9, 5], "target": 11})
    """

    place: str  # for messages; in an array with the record's number: "train.json:7 (record 3)"
    line: int  # where the record begins, from 1
    value: dict[str, Any] | DataError  # the error's text begins with the place


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, in order; no more than one is in memory, in an array too.

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
        scanner = _Scanner(file)
        start = scanner.peek()
        if not start:
            raise DataError(f"{path}: the data file is empty")
        if start == "[":
            yield from _array(path, scanner)
        else:
            file.seek(0)
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
            value = _record(place, json.loads(line), line)
        except json.JSONDecodeError as error:
            value = DataError(f"{place}: not JSON: {error.msg}")
        except (RecursionError, ValueError) as error:
            value = DataError(f"{place}: not JSON that can be read: {error}")
        yield Record(place=place, line=number, value=value)


def _array(path: Path, scanner: "_Scanner") -> Iterator[Record]:
    """The elements of an array, each decoded when it is asked for."""
    scanner.skip()  # the bracket
    if scanner.peek() == "]":
        raise DataError(f"{path}: the data file is empty")
    for number in itertools.count(1):
        scanner.peek()
        line = scanner.line
        try:
            element, text = scanner.element()
            end = scanner.peek()
            if end not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' delimiter", scanner.buffer, scanner.at)
        except json.JSONDecodeError as error:
            place = f"{path}:{scanner.line_of(error.pos)}"
            raise DataError(f"{place}: not JSON: {error.msg}") from None
        except UnicodeDecodeError:  # a ValueError too
            raise
        except (RecursionError, ValueError) as error:
            raise DataError(f"{path}:{line}: not JSON that can be read: {error}") from None
        place = f"{path}:{line} (record {number})"
        yield Record(place=place, line=line, value=_record(place, element, text))
        scanner.skip()
        if end == "]":
            break
    if scanner.peek():
        raise DataError(f"{path}:{scanner.line}: not JSON: text behind the end of the array")


def _record(place: str, value: Any, text: str) -> dict[str, Any] | DataError:
    """A decoded record, if it is an object whose strings are text."""
    if not isinstance(value, dict):
        return DataError(f"{place}: a record is a JSON object, not {type(value).__name__}")
    if LONE_SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            code = ord(error.object[error.start])
            return DataError(f"{place}: \\u{code:04x} without its other half is no character")
    return value


class _Scanner:
    """Goes through a JSON text piece by piece; `buffer[at:]` is what was read and not yet taken."""

    def __init__(self, file: IO[str]):
        self.file = file
        self.decoder = json.JSONDecoder()
        self.buffer, self.at, self.line = "", 0, 1

    def read_on(self) -> bool:
        """Read as much again as is waiting, so that a long element is not decoded too often."""
        waiting = self.buffer[self.at :]
        text = self.file.read(max(CHUNK, len(waiting)))
        if text:
            self.buffer, self.at = waiting + text, 0
        return bool(text)

    def skip(self, to: int | None = None) -> None:
        """Take the text up to an index of the buffer, by default one character."""
        to = self.at + 1 if to is None else to
        self.line = self.line_of(to)
        self.at = to

    def line_of(self, index: int) -> int:
        return self.line + self.buffer.count("\n", self.at, index)

    def peek(self) -> str:
        """The next character that is not blank; empty at the end of the file."""
        while True:
            blanks = BLANKS.match(self.buffer, self.at)
            assert blanks is not None
            self.skip(blanks.end())
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self.read_on():
                return ""

    def element(self) -> tuple[Any, str]:
        """Take one JSON value: (value, its text). Raises what json raises."""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self.buffer) - CUT
                if not cut or not self.read_on():
                    raise
            else:
                text = self.buffer[self.at : end]
                self.skip(end)
                return value, text


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
