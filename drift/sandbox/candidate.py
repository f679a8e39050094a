"""B, the process of one untrusted program. Nothing that it holds is a secret."""

import atexit
import builtins
import contextlib
import operator
import os
import random
import sys
import threading
import traceback
from collections.abc import Iterator
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper
from itertools import islice
from types import ModuleType
from typing import Any, NoReturn

from drift.sandbox import wire
from drift.sandbox.isolation import Isolation, confine_program
from drift.sandbox.program import MAX_TEXT, Message

RPC = 3  # the descriptor of the connection to the checker
READY = "ready"  # the first message: what follows is the program's doing
MAX_MESSAGE = 1 << 28  # bytes of a request, which comes from the checker
MAX_ITEMS = 100_000  # of an iterator whose end is not in sight
BASES: tuple[Any, ...] = (int, float, str, list, dict, tuple, set, frozenset, bytes, complex)
VIEWS = (type({}.keys()), type({}.values()), type({}.items()))
OPERATIONS: dict[str, Any] = {  # on the program's objects, as the checker may ask for them
    "len": len,
    "list": list,
    "str": str,
    "bool": bool,
    "eq": operator.eq,
    "getitem": operator.getitem,
}


def main(isolation: Isolation, memory_mb: int) -> NoReturn:
    """Take the program from the connection, give up every right, run it, serve its functions."""
    os.closerange(RPC + 1, os.sysconf("SC_OPEN_MAX"))
    request = wire.receive(RPC, MAX_MESSAGE)
    if request["stdio"]:
        _give_stdin(request["stdin"].encode("utf-8", "surrogateescape"))
    else:  # where 0 is, /dev/null: what a module prints is nobody's business
        os.dup2(0, 1)
        os.dup2(0, 2)
    confine_program(isolation, memory_mb, request["cpu_s"])
    wire.send(RPC, READY)
    sys.stdin, sys.stdout, sys.stderr = _text_streams()
    sys.argv = ["program.py"]
    # a module that can be found: dataclasses, pickle and typing look theirs up
    module = ModuleType("__main__" if request["stdio"] else "program")
    module.__dict__["__builtins__"] = builtins
    sys.modules[module.__name__] = module
    random.seed(0)
    if request["stdio"]:
        _run_as_script(request["source"], module)
    _run_as_module(request["source"], module)


def _give_stdin(content: bytes) -> None:
    fd = os.memfd_create("stdin")
    with os.fdopen(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    os.dup2(fd, 0)
    os.close(fd)


def _text_streams() -> tuple[TextIOWrapper, TextIOWrapper, TextIOWrapper]:
    stdin = TextIOWrapper(BufferedReader(FileIO(0, "r", closefd=False)), "utf-8", "replace")
    stdout, stderr = (
        TextIOWrapper(BufferedWriter(FileIO(fd, "w", closefd=False)), "utf-8", "surrogateescape")
        for fd in (1, 2)
    )
    return stdin, stdout, stderr


def _error(error: BaseException) -> Message:
    """An exception as its nearest built-in type, its arguments if they are plain, and its text."""

    def refuse(value: Any) -> Any:
        raise wire.NotPlainError

    names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    text, args = "", []
    with contextlib.suppress(BaseException):  # both may be code of the program
        text = str(error)[:MAX_TEXT]
        args = wire.encode(list(error.args), refuse)
    if len(repr(args)) > MAX_TEXT:
        args = [text]
    return {"raised": names[0], "text": f"{type(error).__name__}: {text}", "args": args}


def _run_as_script(source: str, module: ModuleType) -> NoReturn:
    status, report = 0, {}
    try:
        exec(compile(source, "program.py", "exec"), module.__dict__)
    except SystemExit as stop:
        if isinstance(stop.code, int):
            status = stop.code & 0xFF
        elif stop.code is not None:
            status = 1
            print(stop.code, file=sys.stderr)
    except BaseException as error:
        status, report = 1, _error(error)
        traceback.print_exc()
    try:  # as at the end of an interpreter: threads, atexit, buffers
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:
        status, report = status or 120, report or _error(error)
    wire.send(RPC, report)
    os._exit(status)


def _run_as_module(source: str, module: ModuleType) -> NoReturn:
    try:
        exec(compile(source, "program.py", "exec"), module.__dict__)
        report = {}
    except BaseException as error:  # SystemExit too: a program that leaves has no functions
        report = _error(error)
    wire.send(RPC, report)
    served = Served(module)
    while True:
        try:
            request = wire.receive(RPC, MAX_MESSAGE)
        except wire.ClosedError:
            os._exit(0)
        wire.send(RPC, served.answer(request))


class Served:
    """The program's objects that tests have asked for; plain data goes by value."""

    def __init__(self, module: ModuleType):
        self.objects: list[Any] = [module]  # a reference is an index
        self.references: dict[int, int] = {id(module): 0}

    def answer(self, request: Message) -> Message:
        """Do what a test asks: get or set an attribute, call; an exception is an answer too."""
        try:
            on = request["on"]
            target = OPERATIONS[on] if isinstance(on, str) else self.objects[on]
            if request["do"] == "get":
                return {"id": request["id"], "value": self.encode(getattr(target, request["name"]))}
            args = [wire.decode(a, self.referenced) for a in request["args"]]
            if request["do"] == "set":
                setattr(target, request["name"], args[0])
                return {"id": request["id"], "value": None}
            kwargs = {k: wire.decode(v, self.referenced) for k, v in request["kwargs"].items()}
            value = self.encode(target(*args, **kwargs))
            sent = [*request["args"], *request["kwargs"].values()]
            changed: dict[str, Any] = {}
            for i, (arg, before) in enumerate(zip([*args, *kwargs.values()], sent, strict=True)):
                if type(arg) in (list, dict, set) and (after := self.encode(arg)) != before:
                    changed[str(i)] = after
            return {"id": request["id"], "value": value, "changed": changed}
        except BaseException as error:
            return {"id": request["id"], **_error(error)}

    def encode(self, value: Any) -> Any:
        return wire.encode(value, self.other)

    def other(self, value: Any) -> Any:
        """Subclasses as their base, iterators as their items, anything else by reference."""
        if id(value) in self.references:
            return self.reference(value)
        for base in BASES:
            if isinstance(value, base):
                return wire.encode(base(value), self.other)
        if isinstance(value, VIEWS):
            return wire.encode(list(value), self.other)
        if isinstance(value, Iterator) and type(value).__module__ in ("builtins", "itertools"):
            items = list(islice(value, MAX_ITEMS + 1))
            if len(items) > MAX_ITEMS:
                raise wire.NotPlainError(f"an iterator of more than {MAX_ITEMS} items")
            return {wire.TAG: "iterator", wire.VALUE: wire.encode(items, self.other)}
        return self.reference(value)

    def reference(self, value: Any) -> Any:
        if id(value) not in self.references:
            self.references[id(value)] = len(self.objects)
            self.objects.append(value)  # kept alive: its id stays its own
        return {wire.TAG: "object", wire.VALUE: self.references[id(value)]}

    def referenced(self, tag: str, value: Any) -> Any:
        if tag != "object":
            raise ValueError(f"{tag} is no tag")
        return self.objects[value]
