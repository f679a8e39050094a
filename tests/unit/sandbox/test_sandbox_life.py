"""Life and death of the sandbox's processes, and what they are put behind."""

import contextlib
import gc
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from drift.common.errors import SandboxError
from drift.sandbox import Asserts, Sandbox, Stdio, client

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

    def settled() -> bool:  # a zygote has other children until it says hello
        time.sleep(0.2)
        first = next((z.process for z in sandbox._zygotes if z.process is not None), None)
        ready = first is not None and first.stderr is not None and first.stderr.closed
        found.append([first.pid, *filter(alive, children(first.pid))] if first and ready else [])
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
    gc.collect()  # what other tests left open
    own = set(children(os.getpid()))
    with Sandbox(workers=2) as sandbox:
        sandbox.run_all([number(0)] * 4)
        pids = zygotes(sandbox)
        assert soon(lambda: not any(children(pid) for pid in pids))
        mine = len(descriptors(os.getpid()))
        before = [descriptors(pid) for pid in pids]
        sandbox.run_all([number(i) for i in range(150)])
        assert soon(lambda: not any(children(pid) for pid in pids))
        assert [descriptors(pid) for pid in pids] == before
        assert len(descriptors(os.getpid())) <= mine
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


@pytest.mark.parametrize("kills", [1, 2, 3])
def test_a_zygote_killed_as_it_starts_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    unlucky = f"""
import os
mark = os.open({str(tmp_path / "mark")!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.write(mark, b"x")
if os.fstat(mark).st_size <= {kills}:
    os.kill(os.getpid(), 9)
os.close(mark)
"""
    monkeypatch.setattr(client, "START", unlucky + client.START)
    if kills == client.ATTEMPTS:
        with pytest.raises(SandboxError, match="the sandbox does not start: exit code -9"):
            Sandbox(workers=1)
    with Sandbox(workers=1) as sandbox:
        assert sandbox.run(number(3)).verdict == "pass"


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
        assert sandbox.run(number(1)).verdict == "pass"  # it says hello before its root is built
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
