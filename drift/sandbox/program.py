"""B as the checker sees it: a process, a connection, limits; its objects as stand-ins."""

import builtins
import os
import signal
import time
from types import FrameType
from typing import Any

from drift.sandbox import wire

MAX_REPLY = 8 << 20  # bytes of one answer of the program
MAX_CALLS = 20_000
MAX_TEXT = 500  # characters of an error
SPARE_WALL_S = 2.0  # beyond twice the CPU time: a loaded machine is no fault of the program
Message = dict[str, Any]


class Fault(BaseException):
    """The program cannot be judged any further; no `except Exception` of a test hides it."""

    def __init__(self, verdict: str, detail: str):
        super().__init__(verdict, detail)
        self.verdict, self.detail = verdict, detail


class ProgramError(Exception):
    """The program raised something that is not a built-in exception."""


class Object:
    """An object of the program that is no plain data, used from afar.

    Whatever the program's class says, it equals no plain data, so that a test which compares gets
    Python's own answer; only among themselves are the program's objects compared by the program.
    Attributes and items are those of open objects alone: classes that a test names, and what comes
    of them. A function's result that looks like a string but is none has none.
    """

    def __init__(self, program: "Program", reference: int, is_open: bool):
        vars(self).update(_program=program, _reference=reference, _is_open=is_open)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._program.call(self, args, kwargs, is_open=self._is_open)

    def _operate(self, name: str, *args: Any) -> Any:
        if not self._is_open:
            raise TypeError("the program's answer is no plain data")
        return self._program.call(name, (self, *args), {}, is_open=True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not self._is_open:
            raise AttributeError(f"the program's answer has no attribute {name}")
        return self._program.get(self, name, is_open=True)

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.exchange(self, "set", name=name, args=[self._program.encode(value)])

    def __eq__(self, other: object) -> bool:
        if self is other or type(other) is not Object:
            return self is other
        return self._program.call("eq", (self, other), {}, is_open=False) is True

    __hash__ = object.__hash__

    def __iter__(self) -> Any:
        return iter(self._operate("list"))

    def __len__(self) -> int:
        return self._operate("len")

    def __getitem__(self, key: object) -> Any:
        return self._operate("getitem", key)

    def __str__(self) -> str:
        return self._operate("str")

    def __bool__(self) -> bool:
        return self._operate("bool") is True


class Program:
    """B as seen from here: its process, its connection, its limits."""

    def __init__(self, pid: int, connection: int, cpu_s: float):
        self.pid = pid
        self.connection = connection
        self.cpu_s = cpu_s
        self.objects: dict[int, Object] = {}
        self.calls = 0
        self.fault: Fault | None = None
        self.status: int | None = None
        self.killed = False
        self.passed = 0  # tests so far
        signal.signal(signal.SIGALRM, self._on_alarm)
        self.start_clock()

    # time

    def cpu(self) -> float:
        """CPU seconds of the process so far (its clock, as clock_getcpuclockid names it)."""
        try:
            return time.clock_gettime((~self.pid << 3) | 2)
        except OSError:  # it has ended
            return 0.0

    def start_clock(self) -> None:
        """The next part may take `cpu_s` CPU seconds, and in wall time twice that and a little."""
        wall = 2 * self.cpu_s + SPARE_WALL_S
        self.cpu_end, self.wall_end = self.cpu() + self.cpu_s, time.monotonic() + wall
        # for test code that never comes back; again and again, should it catch everything
        signal.setitimer(signal.ITIMER_REAL, wall + 0.2, 0.2)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        raise self.stop("timeout", "the tests took too long")

    def wait(self, *fds: int) -> list[int]:
        """Those that can be read (or are closed), once there is one; or a limit is reached."""
        while True:
            cpu_left = self.cpu_end - self.cpu()
            if cpu_left <= 0 or time.monotonic() >= self.wall_end:
                raise self.stop("timeout", self.too_long)
            # CPU time passes no faster than wall time, but for a program with threads
            until = min(self.wall_end, time.monotonic() + max(cpu_left, 0.01))
            if found := wire.wait_until(until, *fds):
                return found

    @property
    def too_long(self) -> str:
        return f"more than {self.cpu_s:g} s"

    # end

    def stop(self, verdict: str, detail: str) -> Fault:
        """The fault to raise; the first one stays."""
        if self.fault is None:
            self.fault = Fault(verdict, detail)
        return self.fault

    def died(self) -> Fault:
        """The process is gone, or has closed its connection: why?"""
        in_time = self.cpu() < self.cpu_end
        status = self.end(patience_s=0.5)  # it closes its descriptors before it can be waited for
        if status == -signal.SIGKILL and not self.killed:  # by the kernel
            verdict = (
                ("memory", "the process was killed") if in_time else ("timeout", self.too_long)
            )
        else:
            verdict = ("error", f"the process ended with status {status}")
        return self.stop(*verdict)

    def end(self, patience_s: float = 0.0) -> int:
        """Kill the process if it does not end by itself; its exit status, -n for signal n."""
        until = time.monotonic() + patience_s
        while self.status is None:
            pid, status, _ = os.wait4(self.pid, os.WNOHANG)
            if not pid and time.monotonic() >= until:
                self.killed = True
                os.kill(self.pid, signal.SIGKILL)
                pid, status, _ = os.wait4(self.pid, 0)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.001)
        return self.status

    # talk

    def receive(self) -> Message:
        """The next message, an object; everything in it is the program's claim."""
        try:
            message = wire.receive(self.connection, MAX_REPLY, self.wait)
        except wire.ClosedError:
            raise self.died() from None
        except (ValueError, RecursionError) as error:
            raise self.stop("error", f"a broken answer: {error}") from None
        except MemoryError:
            raise self.stop("memory", "an answer too large") from None
        if type(message) is not dict:
            raise self.stop("error", "a broken answer")
        return message

    def encode(self, value: Any) -> Any:
        return wire.encode(value, self._only_objects)

    def _only_objects(self, value: Any) -> Any:
        if type(value) is Object and value._program is self:
            return {wire.TAG: "object", wire.VALUE: value._reference}
        reason = f"a test passes a {type(value).__name__}, which cannot be sent to the program"
        raise self.stop("unsupported", reason)

    def decode(self, data: Any, is_open: bool) -> Any:
        def stand_in(tag: str, value: Any) -> Object:
            if tag != "object" or type(value) is not int:
                raise ValueError(f"{tag} is no tag")
            return self.objects.setdefault(value, Object(self, value, is_open))

        try:
            return wire.decode(data, stand_in)
        except (ValueError, TypeError, ArithmeticError, LookupError, RecursionError) as error:
            raise self.stop("error", f"a broken answer: {error}") from None
        except MemoryError:
            raise self.stop("memory", "an answer too large") from None

    def get(self, on: Object, name: str, *, is_open: bool) -> Any:
        """An attribute of one of the program's objects."""
        return self.decode(self.exchange(on, "get", name=name).get("value"), is_open)

    def exchange(self, on: Object | str, do: str, **what: Any) -> Message:
        """One request to the program and its answer, bound by a random id."""
        if self.fault is not None:
            raise self.fault
        self.calls += 1
        if self.calls > MAX_CALLS:
            raise self.stop("error", f"more than {MAX_CALLS} calls")
        target = on if isinstance(on, str) else on._reference
        request = {"id": os.urandom(16).hex(), "do": do, "on": target, **what}
        try:
            wire.send(self.connection, request)
        except wire.ClosedError:
            raise self.died() from None
        answer = self.receive()
        if answer.get("id") != request["id"]:
            raise self.stop("error", "an answer to something that was not asked")
        if "raised" in answer:
            raise self.exception(answer)
        return answer

    def call(
        self,
        function: Object | str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        is_open: bool,
    ) -> Any:
        """Call the program's function, or an operation on its objects by name.

        What it changes in its arguments is changed here.
        """
        answer = self.exchange(
            function,
            "call",
            args=[self.encode(arg) for arg in args],
            kwargs={name: self.encode(arg) for name, arg in kwargs.items()},
        )
        changed = answer.get("changed")
        for i, arg in enumerate((*args, *kwargs.values())):
            if type(changed) is dict and str(i) in changed:
                update(arg, self.decode(changed[str(i)], is_open))
        return self.decode(answer.get("value"), is_open)

    def exception(self, answer: Message) -> Exception:
        """A built-in exception that the program named, or ProgramError."""
        text = str(answer.get("text"))[:MAX_TEXT]
        kind = vars(builtins).get(answer["raised"]) if type(answer["raised"]) is str else None
        if isinstance(kind, type) and issubclass(kind, Exception):
            args = self.decode(answer.get("args"), is_open=False)
            try:
                return kind(*args)
            except TypeError:
                pass
        return ProgramError(text)


def update(old: Any, new: Any) -> None:
    """Make `old` equal to `new` in place, if both are a list, a dict or a set."""
    if type(old) is not type(new):
        return
    if type(old) is list:
        for i, (before, after) in enumerate(zip(old, new, strict=False)):
            if type(before) in (list, dict, set) and type(before) is type(after):
                update(before, after)
                new[i] = before
        old[:] = new
    elif type(old) in (dict, set):
        old.clear()
        old.update(new)
