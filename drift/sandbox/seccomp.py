"""A seccomp allow-list as a BPF program, for x86_64 and aarch64.

What is not on the list fails with EPERM, so that a program sees an OSError. A call from another
architecture kills the process.
"""

import struct
from typing import NamedTuple

# name: (number on x86_64, number on aarch64); None: the architecture has no such call
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    # memory, time, threads, signals of the process itself
    "brk": (12, 214),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "msync": (26, 227),
    "mincore": (27, 232),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "restart_syscall": (219, 128),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "alarm": (37, None),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "pause": (34, None),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    # who am I
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getgroups": (115, 158),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "getpgrp": (111, None),
    "getpriority": (140, 141),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "getcwd": (79, 17),
    "getrandom": (318, 278),
    # open descriptors
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "lseek": (8, 62),
    "close": (3, 57),
    "close_range": (436, 436),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "fstat": (5, 80),
    "fstatfs": (138, 44),
    "ftruncate": (77, 46),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "flock": (73, 32),
    "fadvise64": (221, 223),
    "sendfile": (40, 71),
    "copy_file_range": (326, 285),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    "shutdown": (48, 210),
    # names, without opening anything; fstat of newer C libraries is newfstatat
    "stat": (4, None),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    # files
    "open": (2, None),
    "openat": (257, 56),
    "getdents64": (217, 61),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "statfs": (137, 43),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "umask": (95, 166),
    "truncate": (76, 45),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    # allowed with some arguments only, or refused in words of their own
    "clone": (56, 220),
    "clone3": (435, 435),
    "prlimit64": (302, 261),
    "ioctl": (16, 29),
    "fcntl": (72, 25),
    "tgkill": (234, 131),
    "kill": (62, 129),
    "wait4": (61, 260),
    "socketpair": (53, 199),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
}
SPECIAL = (
    *("clone", "clone3", "prlimit64", "ioctl", "fcntl", "tgkill", "kill", "wait4"),
    *("socketpair", "sendto", "recvfrom"),
)
FILES = (
    *("open", "openat", "getdents64", "readlink", "readlinkat", "statfs", "chdir", "fchdir"),
    *("umask", "truncate", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat"),
    *("rename", "renameat", "renameat2"),
)
PLAIN = tuple(name for name in NUMBERS if name not in (*SPECIAL, *FILES))

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
LOAD, AND, EQUAL, AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000

THREAD_FLAGS = 0x00000100 | 0x00000800 | 0x00010000  # CLONE_VM, CLONE_SIGHAND, CLONE_THREAD
FORBIDDEN_FLAGS = 0x7E020000 | 0x00002000  # every CLONE_NEW*, CLONE_PTRACE
FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 1030)  # duplicate, flags, locks; not F_SETOWN and the like
IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # terminal?, size, FIONREAD, FION/CLEX
AF_UNIX, SOCK_STREAM, SOCK_FLAGS = 1, 1, 0o2004000  # flags: SOCK_CLOEXEC | SOCK_NONBLOCK


class Check(NamedTuple):
    """A condition on an argument: `argument & mask` is one of `values`; `wide`: all 64 bits."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    wide: bool = False


RULES: dict[str, tuple[Check, ...]] = {
    "clone": (Check(0, (THREAD_FLAGS,), THREAD_FLAGS | FORBIDDEN_FLAGS),),  # threads, no processes
    "prlimit64": (Check(2, (0,), wide=True),),  # limits are read, not set
    "ioctl": (Check(1, IOCTL),),
    "fcntl": (Check(1, FCNTL),),
    # asyncio wakes itself by a pair of sockets; without an address nothing else is reached
    "socketpair": (Check(0, (AF_UNIX,)), Check(1, (SOCK_STREAM,), 0xFFFFFFFF & ~SOCK_FLAGS)),
    "sendto": (Check(4, (0,), wide=True),),
    "recvfrom": (Check(4, (0,), wide=True),),
}


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value & 0xFFFFFFFF)


def _check(check: Check) -> bytes:
    """Goes on where the condition holds, else returns EPERM."""
    offset = (
        16 + 8 * check.argument
    )  # of the argument's lower half; both machines are little-endian
    body = _instruction(LOAD, offset)
    if check.mask != 0xFFFFFFFF:
        body += _instruction(AND, check.mask)
    for i, value in enumerate(check.values):
        body += _instruction(EQUAL, value, len(check.values) - i)
    body += _instruction(RETURN, EPERM)
    if check.wide:  # a pointer: null is the one value that is asked for
        body += _instruction(LOAD, offset + 4) + _instruction(EQUAL, 0, 1)
        body += _instruction(RETURN, EPERM)
    return body


def build_filter(
    machine: str, *, files: bool, own_pid: int | None = None, may_kill: int | None = None
) -> bytes:
    """The BPF program of the allow-list.

    Args:
        machine: x86_64 or aarch64, as `os.uname().machine` says.
        files: files may be opened; what can be seen is decided by mounts and Landlock.
        own_pid: signals to this process id are allowed (threads among themselves).
        may_kill: the one child that may be killed and waited for.

    Raises:
        KeyError: another machine.
    """
    arch = AUDIT_ARCH[machine]
    column = list(AUDIT_ARCH).index(machine)
    numbers = {name: both[column] for name, both in NUMBERS.items()}
    rules = dict(RULES)
    if own_pid is not None:
        rules["tgkill"] = (Check(0, (own_pid,)),)
    if may_kill is not None:
        rules["kill"] = rules["wait4"] = (Check(0, (may_kill,)),)
    program = _instruction(LOAD, 4) + _instruction(EQUAL, arch, 1)
    program += _instruction(RETURN, KILL) + _instruction(LOAD, 0)
    program += _instruction(AT_LEAST, X32_BIT, 0, 1) + _instruction(RETURN, KILL)
    # the C library then makes threads by clone, whose flags can be read
    answers = {"clone3": _instruction(RETURN, ENOSYS)}
    for name, checks in rules.items():
        answers[name] = b"".join(map(_check, checks)) + _instruction(RETURN, ALLOW)
    for name in (*PLAIN, *(FILES if files else ())):
        answers[name] = _instruction(RETURN, ALLOW)
    for name, answer in answers.items():
        if (value := numbers[name]) is not None:
            program += _instruction(EQUAL, value, 0, len(answer) // 8) + answer
    return program + _instruction(RETURN, EPERM)
