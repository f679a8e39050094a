"""Frames between processes, and plain data in them: JSON with tags, exact types, no pickle.

Whoever reads a frame from a candidate believes nothing in it but its shape.
"""

import json
import os
import select
import struct
import time
from collections import deque
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_DEPTH = 100
PLAIN_INT = 2**53
TAG, VALUE = "t", "v"

TYPES = {  # that travel by name
    kind.__name__: kind
    for kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)
}
# what a value of an exact type is made again from: a string, or a list of values
PARTS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    float: ("float", lambda x: x.hex()),
    bytes: ("bytes", lambda x: x.hex()),
    bytearray: ("bytearray", lambda x: x.hex()),
    tuple: ("tuple", list),
    set: ("set", list),
    frozenset: ("frozenset", list),
    deque: ("deque", list),
    dict: ("dict", lambda x: list(map(list, x.items()))),
    complex: ("complex", lambda x: [x.real, x.imag]),
    range: ("range", lambda x: [x.start, x.stop, x.step]),
    Fraction: ("Fraction", lambda x: [x.numerator, x.denominator]),
    Decimal: ("Decimal", lambda x: [str(x)]),
    date: ("date", lambda x: [x.year, x.month, x.day]),
    timedelta: ("timedelta", lambda x: [x.days, x.seconds, x.microseconds]),
}
MAKERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "type": lambda name: TYPES[name],
    "float": float.fromhex,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
    "iterator": iter,
    "dict": dict,
    "complex": lambda parts: complex(*parts),
    "range": lambda parts: range(*parts),
    "Fraction": lambda parts: Fraction(*parts),
    "Decimal": lambda parts: Decimal(*parts),
    "date": lambda parts: date(*parts),
    "timedelta": lambda parts: timedelta(*parts),
}


class NotPlainError(TypeError):
    """A value cannot be sent as plain data."""


class ClosedError(Exception):
    """The other side has closed the connection."""


def encode(value: Any, other: Callable[[Any], Any], depth: int = 0) -> Any:
    """JSON for a value; `other` is asked for what is not plain data of an exact type.

    Raises:
        NotPlainError: nested deeper than MAX_DEPTH; and what `other` raises.
    """
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -PLAIN_INT < value < PLAIN_INT else {TAG: "int", VALUE: hex(value)}
    if depth > MAX_DEPTH:
        raise NotPlainError("nested too deep")
    if kind is list:
        return [encode(item, other, depth + 1) for item in value]
    if kind is type and TYPES.get(value.__name__) is value:
        return {TAG: "type", VALUE: value.__name__}
    if kind not in PARTS:
        return other(value)
    tag, parts = PARTS[kind]
    return {TAG: tag, VALUE: encode(parts(value), other, depth + 1)}


def decode(data: Any, other: Callable[[str, Any], Any]) -> Any:
    """The value behind JSON; `other` is asked for unknown tags.

    Raises: ValueError, TypeError, ArithmeticError or LookupError: not what `encode` gives.
    """
    if data is None or type(data) in (bool, str, int):
        return data
    if type(data) is list:
        return [decode(item, other) for item in data]
    if type(data) is not dict or data.keys() != {TAG, VALUE} or type(data[TAG]) is not str:
        raise ValueError("not plain data")
    tag = data[TAG]
    if tag not in MAKERS:
        return other(tag, data[VALUE])
    return MAKERS[tag](decode(data[VALUE], other))


def pack(message: Any) -> bytes:
    body = json.dumps(message).encode()
    return struct.pack("!I", len(body)) + body


def send(fd: int, message: Any) -> None:
    rest = memoryview(pack(message))
    try:
        while rest:
            rest = rest[os.write(fd, rest) :]
    except (BrokenPipeError, ConnectionResetError):
        raise ClosedError from None


def receive(fd: int, limit: int, wait: Callable[[int], Any] | None = None) -> Any:
    """The next message; `wait(fd)` is called before each read and may raise.

    Raises:
        ClosedError: no whole message came.
        ValueError: longer than `limit` bytes, or not JSON (RecursionError: too deep).
    """
    (size,) = struct.unpack("!I", _read(fd, 4, wait))
    if size > limit:
        raise ValueError(f"a message of {size} bytes; {limit} are allowed")
    return json.loads(_read(fd, size, wait))


def _read(fd: int, size: int, wait: Callable[[int], Any] | None) -> bytes:
    found = bytearray()
    while len(found) < size:
        if wait is not None:
            wait(fd)
        try:
            part = os.read(fd, min(size - len(found), 1 << 20))
        except ConnectionResetError:
            raise ClosedError from None
        if not part:
            raise ClosedError
        found += part
    return bytes(found)


def wait_until(deadline: float, *fds: int) -> list[int]:
    """Those that can be read, or are closed, before `deadline` on the monotonic clock."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]
