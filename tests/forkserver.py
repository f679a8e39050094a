"""Commands without the seconds that an interpreter needs to import torch: forked, not started.

`command` asks a server, one for each process of tests, which has imported what commands import and
forks a child for each. A child runs a module as `python -m` does, with its own working folder,
streams, exit code and exit handlers. What depends on the start of an interpreter (imports, other
environment variables, streams that are closed, terminals, signals) is tested by `start`.
"""

import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 300.0
NO_THREAD = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}  # pyarrow's, of mlflow
READ_LATE = {"WORLD_SIZE", "RANK", "COMP_LINE", "SLURM_RESTART_COUNT"}  # by no import
BEGAN = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
Done = subprocess.CompletedProcess[str]


@functools.cache
def empty_hub() -> tempfile.TemporaryDirectory[str]:
    """What a command has of the Hugging Face Hub; removed when this process ends."""
    return tempfile.TemporaryDirectory()


def environment(**changes: str) -> dict[str, str]:
    """What a command of a test gets: the package of this folder, one thread, and no network.

    It begins with what this process began with: what libraries set later stays here.
    """
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return BEGAN | more | {"HF_HUB_OFFLINE": "1", "HF_HOME": empty_hub().name} | changes


def start(folder: Path, module: str, *words: str, stdin: bytes = b"", **changes: str) -> Done:
    """`python -m MODULE WORDS` in a folder, by an interpreter of its own.

    changes: of its environment.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=folder,
        env=environment(**changes),
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    return Done(done.args, done.returncode, text(done.stdout), text(done.stderr))


def command(folder: Path, module: str, *words: str, stdin: bytes = b"", **changes: str) -> Done:
    """The same by a fork; `start`, if an import reads what changes in the environment."""
    if changes.keys() - READ_LATE:
        return start(folder, module, *words, stdin=stdin, **changes)
    return the_server().run(folder, module, *words, stdin=stdin, changes=changes)


def text(written: bytes) -> str:
    return written.decode().replace("\r\n", "\n").replace("\r", "\n")


@functools.cache
def the_server() -> "Server":
    return Server()


class Server:
    """The client's side; the server ends when this process does, and its socket with it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(TIMEOUT_S)
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            cwd=ROOT,
            env=environment(**NO_THREAD),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        theirs.close()
        self.socket = ours
        self.answers = ours.makefile("r")
        self.answer()  # it is ready

    def run(
        self, folder: Path, module: str, *words: str, stdin: bytes, changes: dict[str, str]
    ) -> Done:
        with tempfile.TemporaryDirectory() as place:
            streams = [Path(place, name) for name in ("stdin", "stdout", "stderr")]
            streams[0].write_bytes(stdin)
            request = {
                "module": module,
                "words": words,
                "folder": str(folder),
                "streams": [str(path) for path in streams],
                "changes": changes,
            }
            self.socket.sendall(json.dumps(request).encode() + b"\n")
            pid = self.answer()
            try:
                code = self.answer()
            except TimeoutError:
                os.kill(pid, 9)
                self.answers = self.socket.makefile("r")
                self.answer()
                raise subprocess.TimeoutExpired([module, *words], TIMEOUT_S) from None
            out, err = (text(path.read_bytes()) for path in streams[1:])
        return Done([sys.executable, "-m", module, *words], code, out, err)

    def answer(self) -> int:
        line = self.answers.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError("the fork server has ended: " + self.log.read().decode())
        return int(line)


def serve(requests: socket.socket) -> None:
    """Fork a child for each request, one after the other; tell its id, then its exit code."""
    import gc

    import_what_commands_import()
    for name in NO_THREAD:
        del os.environ[name]
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads: a fork would lose them"
    gc.collect()
    gc.freeze()  # the children's collections leave the shared pages alone
    requests.sendall(b"0\n")
    for line in requests.makefile("r"):
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            requests.close()
            child(**json.loads(line))
        requests.sendall(b"%d\n" % pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        requests.sendall(b"%d\n" % code)


def import_what_commands_import() -> None:
    """All but the commands themselves, which a child runs as its `__main__`."""
    import accelerate
    import hydra
    import mlflow.store.tracking.sqlalchemy_store
    import torch._dynamo
    import transformers
    from hydra.core.plugins import Plugins

    import drift.cli.command
    import drift.cli.preflight
    import drift.cluster.launch
    import drift.rollout.evaluate
    import drift.runs.stores
    import drift.training.trainer

    del accelerate, hydra, mlflow, torch, transformers, drift
    Plugins.instance()  # looks through all installed packages


def child(
    module: str, words: list[str], folder: str, streams: list[str], changes: dict[str, str]
) -> None:
    """`python -m MODULE WORDS`; never returns."""
    import runpy

    flags = (os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT | os.O_APPEND] * 2)
    for number, (path, flag) in enumerate(zip(streams, flags, strict=True)):
        file = os.open(path, flag)
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.update(changes)
    sys.argv = [module, *words]
    sys.path[0] = folder
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except BaseException as error:
        code = exit_code(error)
    end(code)


def exit_code(error: BaseException) -> int:
    """The interpreter's for an uncaught exception; says what the interpreter says of it."""
    if not isinstance(error, SystemExit):
        kind, trace = type(error), error.__traceback__
        sys.excepthook(kind, error, without_runpy(trace))
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def without_runpy(trace: TracebackType | None) -> TracebackType | None:
    while trace and trace.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
        trace = trace.tb_next
    return trace


def end(code: int) -> None:
    """As an interpreter ends: the threads, the exit handlers, the streams."""
    import atexit
    import threading

    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = 120
    os._exit(code)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    serve(socket.socket(fileno=int(sys.argv[1])))
