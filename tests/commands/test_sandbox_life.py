"""Life and death of the sandbox's processes, and what they are put behind."""

import platform
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.unit.sandbox.test_sandbox_life import alive, children, soon

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
    if "sleep" in end:
        assert soon(lambda: sum(len(children(zygote)) for zygote in pids) == 4)
    below = [pid for zygote in pids for pid in children(zygote)]
    if "sleep" in end:
        trainer.kill()
    trainer.wait()
    assert soon(lambda: not any(map(alive, [*pids, *below])))


FORBIDDEN = """
import platform, sys
from drift.sandbox import Asserts, Sandbox, kernel, seccomp
program = seccomp._instruction(seccomp.LOAD, 0)
for number in map(int, sys.argv[1:]):
    program += seccomp._instruction(seccomp.EQUAL, number, 0, 1)
    program += seccomp._instruction(seccomp.RETURN, seccomp.EPERM)
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
kernel.install_filter(program + seccomp._instruction(seccomp.RETURN, seccomp.ALLOW))
with Sandbox(workers=1) as sandbox:
    print(sandbox.isolation)
    one = Asserts(source="def f(): return 1", tests=("assert f() == 1",), names=("f",))
    print(sandbox.run(one).verdict)
"""


@pytest.mark.parametrize(
    ("numbers", "isolation"),
    [
        (("272",), "landlock+seccomp"),  # unshare, as in a container
        (("165",), "landlock+seccomp"),  # mount
        (("155",), "landlock+seccomp"),  # pivot_root
        (("444",), "namespaces+seccomp"),  # an older kernel: no Landlock
        (("272", "444"), "seccomp"),
    ],
)
def test_where_something_is_forbidden_the_next_best_is_used(
    numbers: tuple[str, ...], isolation: str
) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("numbers of x86_64")
    done = subprocess.run(
        [sys.executable, "-c", FORBIDDEN, *numbers],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [isolation, "pass"]
    assert "sandbox: not in use: " in done.stderr or isolation == "namespaces+seccomp"


def test_the_sandbox_imports_no_torch() -> None:
    code = "import sys, drift.sandbox, drift.sandbox.zygote; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
