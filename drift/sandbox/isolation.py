"""What stands between a program and the machine, the strongest that this machine allows.

The order: namespaces (with Landlock where the kernel has it) and seccomp; Landlock and seccomp;
seccomp that forbids to open any file; none. Each is tried in a forked process from where a program
would stand: it must read the standard library, and fail to read /etc, to open a socket and to fork.
"""

import os
import platform
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from drift.sandbox import kernel, landlock, seccomp

LEVELS = ("namespaces", "landlock", "seccomp", "none")
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
PACKAGES = ("python3*/site-packages", "python3*/dist-packages")
TMP_MB = 8
MAX_FILES = 64  # open at the same time
MAX_THREADS = 64
STACK_MB = 64
FIRST_UID = 0x30000000  # plus the zygote's process id: a user that owns nothing
NOBODY = 65534


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """Isolation(level="namespaces", landlock=7, user=805310000, readable=["/usr/lib", ...])"""

    level: str  # one of LEVELS
    landlock: int  # its ABI, 0 = not in use
    user: int | None  # programs run as this user; None = as who started them
    readable: list[str]  # folders of the interpreter and its libraries

    @property
    def name(self) -> str:
        """`namespaces+landlock+seccomp`"""
        if self.level == "none":
            return "none"
        used = [self.level, "landlock" if self.landlock else "", "seccomp"]
        return "+".join(dict.fromkeys(filter(None, used)))


def library_folders() -> list[str]:
    """Where the interpreter and what it loads are."""
    own = (str(Path(os.__file__).parent), f"{sys.base_prefix}/lib")
    there = [path for path in dict.fromkeys((*own, *LIBRARIES)) if Path(path).is_dir()]
    return [p for p in there if not any(p.startswith(f"{above}/") for above in there)]


def candidates(first: str) -> Iterator[Isolation]:
    """Every isolation to try, the strongest first, from a level on."""
    folders = library_folders()
    users: tuple[int | None, ...] = (None,)
    if os.getuid() == 0:
        users = (FIRST_UID + os.getpid(), NOBODY, None)
    version = landlock.abi()
    for level in LEVELS[LEVELS.index(first) :]:
        if level != "none" and platform.machine() not in seccomp.AUDIT_ARCH:
            continue
        if level == "landlock" and not version:
            continue
        used = version if level in ("namespaces", "landlock") else 0
        for user in users:
            yield Isolation(level=level, landlock=used, user=user, readable=folders)


def choose(first: str, memory_mb: int) -> tuple[Isolation, list[str]]:
    """The strongest isolation that works, and why those before it do not."""
    refused: list[str] = []
    for isolation in candidates(first):
        if isolation.level == "none":
            return isolation, refused
        reason = _try(isolation, memory_mb)
        if reason is None:
            return isolation, refused
        refused.append(f"{isolation.name}: {reason}")
    raise AssertionError("the last level is none, and it is always there")


def _try(isolation: Isolation, memory_mb: int) -> str | None:
    """Why an isolation does not work here, found out in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            enter(isolation)
            if isolation.level == "namespaces":
                kernel.unshare(kernel.CLONE_NEWPID)
            grandchild = os.fork()
            if grandchild:
                _, status = os.waitpid(grandchild, 0)
                os._exit(os.waitstatus_to_exitcode(status))
            confine_program(isolation, memory_mb, cpu_s=5)
            reason = _hole(isolation)
        except Exception as error:  # every refusal of the kernel is an answer
            reason = str(error)
        os.write(writing, (reason or "").encode())
        os._exit(1 if reason else 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        reason = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return None if status == 0 else reason or "it ends the process"


def _hole(isolation: Isolation) -> str | None:
    """What a confined process can do and should not, or cannot and should."""
    if isolation.level != "seccomp":
        Path(os.__file__).read_bytes()
    try:
        os.close(os.open("/etc/passwd", os.O_RDONLY))
        return "/etc can be read"
    except OSError:
        pass
    try:
        socket.socket().close()
        return "a socket can be opened"
    except OSError:
        pass
    try:
        if os.fork() == 0:
            os._exit(0)
        return "processes can be started"
    except OSError:
        return None


def enter(isolation: Isolation) -> None:
    """The zygote's own part: namespaces, and a root that holds nothing but the interpreter."""
    if isolation.level != "namespaces":
        return
    spaces = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    user, group = os.getuid(), os.getgid()
    try:
        kernel.unshare(spaces)
    except PermissionError:
        kernel.unshare(spaces | kernel.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    kernel.set_host_name("sandbox")
    _build_root(isolation.readable)


def _build_root(folders: list[str]) -> None:
    kernel.mount("", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    # held open, because the new root covers /tmp, and the interpreter may be below it
    opened = {path: os.open(path, os.O_PATH) for path in (*folders, *DEVICES)}
    links = {path: Path(path).readlink() for path in folders if Path(path).is_symlink()}
    root = "/tmp"  # any folder that is there; only this namespace sees what is put over it
    quiet = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("tmpfs", root, "tmpfs", quiet, "size=1m,mode=755")
    for path, fd in opened.items():
        target = Path(root + path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path in links:
            target.symlink_to(links[path])
        elif path in DEVICES:
            target.touch()
            kernel.mount(f"/proc/self/fd/{fd}", str(target), flags=kernel.MS_BIND)
        else:
            target.mkdir()
            # with what is mounted below: a user namespace may not look behind that
            tree = kernel.MS_BIND | kernel.MS_REC
            kernel.mount(f"/proc/self/fd/{fd}", str(target), flags=tree)
            for packages in PACKAGES:  # what is installed is no business of a program
                for found in target.glob(packages):
                    kernel.mount("tmpfs", str(found), "tmpfs", quiet, "size=4k,mode=755")
            kept = os.statvfs(target).f_flag & kernel.MS_NOEXEC
            flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | quiet | kept
            kernel.mount("", str(target), flags=flags)
        os.close(fd)
    Path(root, "tmp").mkdir()
    Path(root, "old").mkdir()
    os.chdir(root)
    kernel.pivot_root(".", "old")
    os.chdir("/")
    kernel.unmount("/old")
    Path("/old").rmdir()
    kernel.mount("", "/", flags=kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | quiet)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _leave_user(isolation: Isolation) -> None:
    """Another user, no capabilities, no way to others; killed when the parent ends."""
    if isolation.user is not None:
        os.setgroups([])
        os.setresgid(isolation.user, isolation.user, isolation.user)
        os.setresuid(isolation.user, isolation.user, isolation.user)
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    _die_with_parent()  # the kernel forgets it where the user changes


def _die_with_parent() -> None:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)


def confine_program(isolation: Isolation, memory_mb: int, cpu_s: int) -> None:
    """B's part: what runs from here on is trusted with nothing."""
    spaces = isolation.level == "namespaces"
    if spaces:
        kernel.unshare(kernel.CLONE_NEWNS)
        options = f"size={TMP_MB}m,nr_inodes=256,mode=1777"
        kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
    os.chdir("/tmp" if spaces else "/")
    for kind, value in (
        (resource.RLIMIT_AS, memory_mb << 20),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, TMP_MB << 20),
        (resource.RLIMIT_NOFILE, MAX_FILES),
        (resource.RLIMIT_STACK, STACK_MB << 20),
        (resource.RLIMIT_CORE, 0),
    ):
        _limit(kind, value)
    if isolation.level == "none":
        _die_with_parent()
        return
    for kind in (resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE):
        _limit(kind, 0)
    if isolation.user not in (None, NOBODY) or (spaces and _counts_by_namespace()):
        _limit(resource.RLIMIT_NPROC, MAX_THREADS)  # counted for this user alone
    _leave_user(isolation)
    if isolation.landlock:
        writable = ["/tmp", "/dev/null"] if spaces else ["/dev/null"]
        readable = [*isolation.readable, *DEVICES]
        landlock.restrict(isolation.landlock, readable, writable, signals=False)
    own_pid = 1 if spaces else None
    kernel.install_filter(
        seccomp.build_filter(
            platform.machine(), files=isolation.level != "seccomp", own_pid=own_pid
        )
    )


def confine_checker(isolation: Isolation, memory_mb: int, child: int) -> None:
    """A's part: it runs the data set's tests, and may kill the program that it checks."""
    _limit(resource.RLIMIT_AS, memory_mb << 20)
    _limit(resource.RLIMIT_CORE, 0)
    if isolation.level == "none":
        _die_with_parent()
        return
    _leave_user(isolation)
    if isolation.landlock:
        readable = [*isolation.readable, *DEVICES]
        landlock.restrict(isolation.landlock, readable, ["/dev/null"], signals=True)
    kernel.install_filter(
        seccomp.build_filter(platform.machine(), files=isolation.level != "seccomp", may_kill=child)
    )


def _counts_by_namespace() -> bool:
    """Since Linux 5.14 RLIMIT_NPROC counts a user within the user namespace."""
    version = platform.release().split("-")[0].split(".")
    return os.getuid() != 0 and tuple(map(int, version[:2])) >= (5, 14)
