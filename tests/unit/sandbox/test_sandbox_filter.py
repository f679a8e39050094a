"""The sandbox's filter of system calls, answered by an interpreter of its program."""

import re
import struct
from pathlib import Path

import pytest

from drift.sandbox import seccomp


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
