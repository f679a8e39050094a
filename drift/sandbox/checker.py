"""A, the process that checks one program. It alone reads the request and makes the verdict.

Test code runs here against stand-ins for the program's functions; of the program it gets nothing
but plain data. So whatever a program does in its own process, `==` is Python's own.
"""

import contextlib
import math
import os
import random
import signal
import socket
from typing import Any, NoReturn

from drift.sandbox import candidate, kernel, wire
from drift.sandbox.isolation import Isolation, confine_checker
from drift.sandbox.program import MAX_REPLY, MAX_TEXT, Fault, Message, Object, Program

MAX_REQUEST = 1 << 28  # bytes; it comes from the trainer
MAX_OUTPUT = 16 << 20  # bytes of a program's standard output
MAX_ERRORS = 64 << 10  # bytes kept of its standard error


def check_asserts(program: Program, request: Message) -> Message:
    """Run the tests one by one; each has the time limit for itself."""
    report = program.receive()
    if report:
        verdict = "memory" if report.get("raised") == "MemoryError" else "error"
        raise program.stop(verdict, str(report.get("text"))[:MAX_TEXT])
    space: dict[str, Any] = {"__name__": "tests", **theirs(program, request["names"])}
    tested = {}
    if request["entry_point"] in space:  # HumanEval's tests call it candidate
        tested = dict.fromkeys((request["entry_point"], "candidate"), space[request["entry_point"]])
    failure = run_test(program, request["setup"], space)
    if failure is not None:
        raise program.stop("error", f"before the tests: {failure[1]}")
    space.pop(request["entry_point"], None)
    space |= tested  # nothing in the setup stands in for what is tested
    failures: list[tuple[str, str]] = []
    for text in request["tests"]:
        program.start_clock()
        if (failure := run_test(program, text, space)) is not None:
            failures.append(failure)
        else:
            program.passed += 1
    found = dict(reversed(failures))  # the first reason of each kind
    verdict = next((kind for kind in ("memory", "wrong", "error") if kind in found), "pass")
    return {"verdict": verdict, "passed": program.passed, "detail": found.get(verdict, "")}


def theirs(program: Program, names: list[str]) -> dict[str, Any]:
    """What the program calls by these names; what it lacks is a NameError in the test that asks."""
    module = Object(program, 0, is_open=False)
    found: dict[str, Any] = {}
    for name in names:
        with contextlib.suppress(Exception):
            found[name] = program.get(module, name, is_open=name[:1].isupper())
    return found


def run_test(program: Program, text: str, space: dict[str, Any]) -> tuple[str, str] | None:
    """None if the test passes, else verdict and reason."""
    failure: tuple[str, str] | None = None
    try:
        exec(compile(text, "test", "exec"), space)
    except AssertionError as error:
        failure = ("wrong", said_by(error) or text.strip().partition("\n")[0][:MAX_TEXT])
    except Fault:
        pass
    except BaseException as error:  # SystemExit too
        verdict = "memory" if isinstance(error, MemoryError) else "error"
        failure = (verdict, f"{type(error).__name__}: {said_by(error)}")
    if program.fault is not None:  # even if the test has caught it
        raise program.fault
    return failure


def said_by(error: BaseException) -> str:
    """The text of an exception; empty where it holds an object that has none."""
    try:
        return str(error)[:MAX_TEXT]
    except Exception:
        return ""


def check_output(program: Program, out: int, err: int, expected: str) -> Message:
    """Read what the program prints; it must end with status 0 and the right text."""
    found = {out: bytearray(), err: bytearray()}
    unfinished = {out, err}
    while unfinished:
        for fd in program.wait(*unfinished):
            part = os.read(fd, 1 << 16)
            found[fd] += part
            if not part:
                unfinished.discard(fd)
        if len(found[out]) > MAX_OUTPUT:
            raise program.stop("error", f"more than {MAX_OUTPUT} bytes of output")
        del found[err][:-MAX_ERRORS]
    try:
        report = wire.receive(program.connection, MAX_REPLY, program.wait)
    except (wire.ClosedError, ValueError, RecursionError):
        report = {}
    if program.end(patience_s=1.0) != 0:
        if type(report) is dict and report.get("raised") == "MemoryError":
            raise program.stop("memory", "MemoryError")
        lines = found[err].decode("utf-8", "replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "")
        raise program.stop("error", said[:MAX_TEXT]) if said else program.died()
    if same_lines(bytes(found[out]), expected.encode("utf-8", "surrogateescape")):
        return {"verdict": "pass", "passed": 1, "detail": ""}
    return {"verdict": "wrong", "passed": 0, "detail": "another output"}


def same_lines(found: bytes, expected: bytes) -> bool:
    """Equal but for blanks at the ends of lines and empty lines at the end."""
    one, other = (
        [line.rstrip() for line in text.rstrip().split(b"\n")] for text in (found, expected)
    )
    return one == other


def judge(program: Program, request: Message, out: int, err: int) -> Message:
    """Give the program to B and make the verdict.

    Raises:
        ClosedError: B has not come as far as to start the program; that is no verdict on it.
    """
    stdio = request["kind"] == "stdio"
    parts = 1 if stdio else len(request["tests"]) + 2  # each may take the whole time
    try:
        wire.send(
            program.connection,
            {
                "stdio": stdio,
                "source": request["source"],
                "stdin": request["stdin"] if stdio else "",
                "cpu_s": math.ceil(program.cpu_s * parts) + 1,  # the net below the checker's clock
            },
        )
        if wire.receive(program.connection, MAX_REPLY, program.wait) != candidate.READY:
            raise wire.ClosedError
        if stdio:
            return check_output(program, out, err, request["expected"])
        return check_asserts(program, request)
    except Fault as fault:
        return {"verdict": fault.verdict, "passed": program.passed, "detail": fault.detail}
    except MemoryError:
        detail = "the checker ran out of memory"
        return {"verdict": "memory", "passed": program.passed, "detail": detail}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        program.end()


def main(connection: int, isolation: Isolation, memory_mb: int) -> NoReturn:
    """Fork the program's process, then read the request, judge, report, leave.

    Args:
        connection: the descriptor that the request comes from and the report goes to.
        isolation: what both processes are put behind.
        memory_mb: address space of each of the two.
    """
    mine, other = socket.socketpair()
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    if isolation.level == "namespaces":
        kernel.unshare(kernel.CLONE_NEWPID)  # for the child
    pid = os.fork()
    if pid == 0:
        try:
            for fd, wanted in ((out_end, 1), (err_end, 2), (other.fileno(), candidate.RPC)):
                os.dup2(fd, wanted)
            candidate.main(isolation, memory_mb)
        finally:
            os._exit(70)
    for end in (other.detach(), out_end, err_end):
        os.close(end)
    confine_checker(isolation, memory_mb, pid)
    request = wire.receive(connection, MAX_REQUEST)
    random.seed(0)
    program = Program(pid, mine.fileno(), request["time_limit"])
    report = judge(program, request, out, err)
    wire.send(connection, {"nonce": request["nonce"], **report})
    os._exit(0)
