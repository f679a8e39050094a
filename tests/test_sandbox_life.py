"""Life and death of the sandbox's processes, and its filter of system calls."""

import contextlib
import gc
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from drift.errors import SandboxError
from drift.sandbox import Asserts, Sandbox, Stdio, seccomp
from drift.sandbox.names import called_first, examine
from tests.conftest import ROOT

SLOW = Asserts(
    source="import time\ndef f():\n time.sleep(1.5)\n return 1",
    tests=("assert f() == 1",), names=("f",), entry_point="f",
)  # fmt: skip


def number(n: int) -> Stdio:
    return Stdio(source=f"print({n})", stdin="", expected=str(n))


def children(pid: int) -> list[int]:
    """Processes below one, at any depth."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it ends while we look
            for child in map(int, task.read_text().split()):
                found += [child, *children(child)]
    return found


def descriptors(pid: int) -> list[str]:
    """What a process holds open."""
    found: list[str] = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them
            found.append(str(link.readlink()))
    return sorted(found)


def zygotes(sandbox: Sandbox) -> list[int]:
    return [z.process.pid for z in sandbox._zygotes if z.process is not None]


def running(sandbox: Sandbox) -> list[int]:
    """Process ids of the first zygote, its checker and its program, while one runs."""
    found: list[list[int]] = []

    def settled() -> bool:  # a starting zygote has children too, which come and go
        time.sleep(0.2)
        first = zygotes(sandbox)[:1]
        found.append([*first, *children(first[0])] if first else [])
        return len(found[-1]) == 3 and found[-2:-1] == found[-1:]

    assert soon(settled)
    return found[-1]


def soon(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_verdicts_come_in_order() -> None:
    requests = [number(i) for i in range(40)]
    requests[7] = requests[30] = Stdio(source="print(1", stdin="", expected="")
    with Sandbox(workers=3) as sandbox:
        verdicts = [v.verdict for v in sandbox.run_all(requests)]
        assert sandbox.run_all([]) == []
    assert [i for i, v in enumerate(verdicts) if v != "pass"] == [7, 30]


def test_programs_leave_no_process_and_no_descriptor() -> None:
    own = set(children(os.getpid()))
    with Sandbox(workers=2) as sandbox:
        sandbox.run_all([number(0)] * 4)
        pids, mine = zygotes(sandbox), len(descriptors(os.getpid()))
        before = [descriptors(pid) for pid in pids]
        sandbox.run_all([number(i) for i in range(150)])
        assert soon(lambda: not any(children(pid) for pid in pids))
        assert [descriptors(pid) for pid in pids] == before
        assert len(descriptors(os.getpid())) == mine
    assert set(children(os.getpid())) - own == set()


@pytest.mark.parametrize("depth", ["zygote", "checker", "program"])
def test_a_process_killed_while_it_runs_loses_no_request(depth: str) -> None:
    with Sandbox(workers=2) as sandbox, ThreadPoolExecutor() as pool:
        verdicts = pool.submit(sandbox.run_all, [SLOW] * 6)
        for _ in range(2):
            zygote, checker, program = running(sandbox)
            os.kill({"zygote": zygote, "checker": checker, "program": program}[depth], 9)
            assert soon(lambda c=checker, p=program: not alive(c) and not alive(p))
        results = [verdict.verdict for verdict in verdicts.result()]
    # a program that the kernel kills is judged; that is no loss
    assert sorted(results) == ["memory"] * 2 * (depth == "program") + ["pass"] * (
        4 if depth == "program" else 6
    )


def test_a_request_whose_checker_always_dies_is_an_error() -> None:
    with Sandbox(workers=1) as sandbox, ThreadPoolExecutor() as pool:
        endless = Asserts(
            source="import time\ndef f(): time.sleep(30)",
            tests=("f()",), names=("f",), entry_point="f", time_limit=30,
        )  # fmt: skip
        verdict = pool.submit(sandbox.run, endless)
        for _ in range(3):
            os.kill(running(sandbox)[1], signal.SIGKILL)
        assert verdict.result().verdict == "error"
        assert sandbox.run(number(3)).verdict == "pass"


def test_close_and_garbage_leave_nothing() -> None:
    sandbox = Sandbox(workers=2)
    pids = zygotes(sandbox)
    sandbox.close()
    sandbox.close()
    assert not any(map(alive, pids))
    sandbox = Sandbox(workers=1)
    pids = zygotes(sandbox)
    del sandbox
    gc.collect()
    assert not any(map(alive, pids))


TRAINER = """
import os, sys, threading, time
from drift.sandbox import Sandbox, Stdio
sandbox = Sandbox(workers=2)
program = Stdio(source="while True: pass", stdin="", expected="", time_limit=99)
threading.Thread(target=sandbox.run_all, args=([program] * 2,), daemon=True).start()
time.sleep(1)
print(*[z.process.pid for z in sandbox._zygotes], flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["time.sleep(99)", "os._exit(0)"])
def test_nothing_outlives_the_trainer(end: str) -> None:
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER.replace("{end}", end)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert trainer.stdout is not None
    with trainer.stdout as stdout:
        pids = list(map(int, stdout.readline().split()))
    below = [pid for zygote in pids for pid in children(zygote)]
    if "sleep" in end:
        assert len(below) == 4
        trainer.kill()
    trainer.wait()
    assert soon(lambda: not any(map(alive, [*pids, *below])))


def test_a_forked_trainer_does_not_end_the_sandbox_of_the_first() -> None:
    with Sandbox(workers=1) as sandbox:
        code = os.fork()
        if code == 0:
            sandbox.close()
            os._exit(0)
        os.waitpid(code, 0)
        assert sandbox.run(number(1)).verdict == "pass"


def test_a_zygote_starts_with_an_empty_environment_and_no_descriptor_of_ours() -> None:
    with Path(__file__).open() as held, Sandbox(workers=1) as sandbox:
        os.set_inheritable(held.fileno(), True)
        (pid,) = zygotes(sandbox)
        names = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert {name.split(b"=")[0] for name in names if name} <= {b"PYTHONHASHSEED", b"LC_ALL"}
        kinds = [target.split(":")[0] for target in descriptors(pid)]
        assert kinds == ["/dev/null"] * 3 + ["socket"]


def test_a_machine_without_isolation_is_refused_unless_it_is_asked_for() -> None:
    with pytest.raises(SandboxError, match=r"cannot be isolated .* task\.allow_unsafe=true"):
        Sandbox(workers=1, level="none")
    with Sandbox(workers=1, level="none", allow_unsafe=True) as sandbox:
        assert sandbox.isolation == "none"
        assert sandbox.run(number(1)).verdict == "pass"
        assert sandbox.run(SLOW).verdict == "pass"


def test_the_sandbox_imports_no_torch() -> None:
    code = "import sys, drift.sandbox, drift.sandbox.zygote; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# Names


@pytest.mark.parametrize(
    ("setup", "tests", "entry_point", "names", "modules"),
    [
        ("", ["assert f(1) == 2"], "f", ["f"], []),
        ("", ["assert f(1) == 2"], "", ["f"], []),
        ("", ["assert sum(1, 2) == 3"], "", [], []),
        ("", ["assert sum(1, 2) == 3"], "sum", ["sum"], []),
        ("", ["assert math.isclose(f(1), 2)"], "f", ["f"], ["math"]),
        ("import math", ["assert math.isclose(f(1), 2)"], "f", ["f"], []),
        ("n = Node(1)\nm = n", ["assert f(m) == 2"], "f", ["Node", "f"], []),
        ("def f(): pass\ndef g(): pass", ["assert f(g()) == 2"], "f", ["f"], []),
        ("", ["def check(candidate):\n assert candidate(1)", "check(f)"], "f", ["f"], []),
        ("", ["try: f()\nexcept E as e: print(e)"], "", ["E", "f"], []),
        ("", ["for i in [1]:\n assert all(f(j) for j in [i])"], "", ["f"], []),
    ],
)
def test_names_of_the_program(
    setup: str, tests: list[str], entry_point: str, names: list[str], modules: list[str]
) -> None:
    uses = examine(setup, tests, entry_point)
    assert (uses.names, uses.modules) == (names, modules)


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ("assert f(lambda x: x, 1) == 1", "passes a lambda to f"),
        ("assert f(key=lambda x: x) == 1", "passes a lambda to f"),
        ("def g(): pass\nf(g)", "passes g, which is no plain data, to f"),
        ("assert sorted(f(1), key=lambda x: x) == 1", None),
        ("def check(candidate): assert candidate(1)\ncheck(f)", None),
    ],
)
def test_tests_that_cannot_cross_are_seen(test: str, reason: str | None) -> None:
    assert examine("", [test], "f").unsendable == reason


@pytest.mark.parametrize(
    ("test", "name"),
    [
        ("assert f(1) == 2", "f"),
        ("assert set(f(1)) == set([2])", "f"),
        ("assert sum(10, 15) == 6", "sum"),
        ("assert (max_height(root)) == 3", "max_height"),
        ("assert f(g(1)) == 2", "f"),
        ("x = 1", ""),
    ],
)
def test_the_function_that_a_test_calls(test: str, name: str) -> None:
    assert called_first(test) == name


# The filter


def verdict_of(program: bytes, arch: int, number: int, *args: int) -> int:
    """What a BPF program answers to a system call (an interpreter of the few codes in use)."""
    data = struct.pack("IIQ6Q", number, arch, 0, *(*args, 0, 0, 0, 0, 0, 0)[:6])
    a, at = 0, 0
    while True:
        code, if_true, if_false, k = struct.unpack_from("HBBI", program, 8 * at)
        at += 1
        if code == seccomp.LOAD:
            (a,) = struct.unpack_from("I", data, k)
        elif code == seccomp.AND:
            a &= k
        elif code == seccomp.EQUAL:
            at += if_true if a == k else if_false
        elif code == seccomp.AT_LEAST:
            at += if_true if a >= k else if_false
        else:
            assert code == seccomp.RETURN
            return k


HEADERS = {
    "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "aarch64": "/usr/include/asm-generic/unistd.h",
}


@pytest.mark.parametrize("column", [0, 1], ids=list(HEADERS))
def test_numbers_are_those_of_the_kernels_headers(column: int) -> None:
    path = Path(list(HEADERS.values())[column])
    if not path.exists():
        pytest.skip(f"needs {path}")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())
    numbers = {name: int(value) for name, value in found}
    numbers.setdefault("newfstatat", numbers.get("fstatat", -1))
    for name, both in seccomp.NUMBERS.items():
        assert both[column] == (numbers[name] if both[column] is not None else None), name


@pytest.mark.parametrize("machine", list(HEADERS))
@pytest.mark.parametrize("files", [True, False])
def test_every_call_is_allowed_refused_or_looked_at(machine: str, files: bool) -> None:
    column, arch = list(HEADERS).index(machine), seccomp.AUDIT_ARCH[machine]
    program = seccomp.build_filter(machine, files=files)
    of = {both[column]: name for name, both in seccomp.NUMBERS.items() if both[column] is not None}
    allowed = {*seccomp.PLAIN, *(seccomp.FILES if files else ())}
    for call in range(600):
        if of.get(call) in seccomp.SPECIAL:
            continue
        expected = seccomp.ALLOW if of.get(call) in allowed else seccomp.EPERM
        assert verdict_of(program, arch, call) == expected, (call, of.get(call))
    assert verdict_of(program, 0x40000003, 1) == seccomp.KILL  # i386's write
    assert verdict_of(program, arch, 0x40000000 + 1) == seccomp.KILL


@pytest.mark.parametrize(
    ("name", "args", "allowed"),
    [
        ("clone", (0x3D0F00,), True),  # as the C library makes a thread
        ("clone", (17,), False),  # a fork
        ("clone", (0x3D0F00 | 0x10000000,), False),  # a thread in a new user namespace
        ("prlimit64", (0, 7, 0, 1 << 40), True),
        ("prlimit64", (0, 7, 1 << 40, 0), False),
        ("prlimit64", (0, 7, 1 << 20, 0), False),
        ("ioctl", (1, 0x5401), True),
        ("ioctl", (1, 0x5412), False),  # TIOCSTI
        ("fcntl", (0, 3), True),
        ("fcntl", (0, 8), False),  # F_SETOWN
        ("fcntl", (0, 1031), False),  # F_SETPIPE_SZ
        ("tgkill", (1, 1, 6), True),
        ("tgkill", (2, 2, 6), False),
        ("kill", (77, 9), False),
        ("wait4", (77,), False),
        ("socketpair", (1, 1 | 0o2000000), True),
        ("socketpair", (1, 2), False),  # datagrams can be sent to a name
        ("socketpair", (2, 1), False),
        ("sendto", (3, 1, 1, 0, 0, 0), True),
        ("sendto", (3, 1, 1, 0, 1 << 33, 0), False),
    ],
)
@pytest.mark.parametrize("machine", list(HEADERS))
def test_calls_with_an_argument_that_matters(
    machine: str, name: str, args: tuple[int, ...], allowed: bool
) -> None:
    column, arch = list(HEADERS).index(machine), seccomp.AUDIT_ARCH[machine]
    call = seccomp.NUMBERS[name][column]
    assert call is not None
    program = seccomp.build_filter(machine, files=True, own_pid=1)
    answer = verdict_of(program, arch, call, *args)
    assert answer == (seccomp.ALLOW if allowed else seccomp.EPERM)


def test_a_checker_may_kill_its_program_and_nobody_else() -> None:
    program = seccomp.build_filter("x86_64", files=True, may_kill=77)
    arch = seccomp.AUDIT_ARCH["x86_64"]
    assert verdict_of(program, arch, 62, 77, 9) == seccomp.ALLOW
    assert verdict_of(program, arch, 61, 77) == seccomp.ALLOW
    for pid in (78, 1, 0, 0xFFFFFFFF):
        assert verdict_of(program, arch, 62, pid, 9) == seccomp.EPERM
