"""Landlock: which files a process can open, whatever their permissions say (Linux 5.13)."""

import os
import struct
from pathlib import Path

from drift.sandbox import kernel

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15  # since ABI 2, 3, 5
ABI_1_RIGHTS = (1 << 13) - 1
ALL_TCP = 3  # bind and connect, since ABI 4
ABSTRACT_SOCKETS, SIGNALS = 1, 2  # scopes, since ABI 6
READ = READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER | TRUNCATE
OF_A_FILE = WRITE_FILE | READ_FILE | TRUNCATE


def abi() -> int:
    """The kernel's Landlock version, 0 where there is none."""
    try:
        return kernel.syscall("landlock_create_ruleset", CREATE_RULESET, 0, 0, 1)
    except OSError:
        return 0


def restrict(version: int, readable: list[str], writable: list[str], *, signals: bool) -> None:
    """From now on only the given files and folders can be opened, and no TCP port used.

    Args:
        version: from `abi`, at least 1.
        readable: files and folders to read, with what is below them.
        writable: those to read and write.
        signals: processes outside may be signalled, where Landlock could forbid it.
    """
    rights = ABI_1_RIGHTS
    for since, right in ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)):
        rights |= right if version >= since else 0
    scopes = ABSTRACT_SOCKETS if signals else ABSTRACT_SOCKETS | SIGNALS
    attributes = struct.pack("QQQ", rights, ALL_TCP, scopes)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = kernel.syscall("landlock_create_ruleset", CREATE_RULESET, attributes[:size], size, 0)
    try:
        for path in readable:
            _allow(rules, path, READ & rights)
        for path in writable:
            _allow(rules, path, WRITE & rights)
        kernel.syscall("landlock_restrict_self", RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not Path(path).is_dir():
            rights &= OF_A_FILE
        rule = struct.pack("=Qi", rights, fd)
        kernel.syscall(f"landlock_add_rule {path}", ADD_RULE, rules, 1, rule, 0)
    finally:
        os.close(fd)
