"""No attack passes, and what comes after it is judged as ever.

Here at the first level of isolation; tests/slow has the others.
"""

import platform
from collections.abc import Iterator

import pytest

from drift.sandbox import Asserts, Sandbox, Stdio, Verdict
from tests.attacks import EXHAUSTION, FORGERIES, SCRIPTS, SECRET
from tests.probes import PROBE, PROBES

LIMIT_S = 0.5
HONEST = Asserts(
    source="def f(): return 42", tests=("assert f() == 42",), names=("f",), entry_point="f"
)
# without namespaces a program sees what lies in the interpreter's folders, and it may run as a user
# whose threads are not counted for it alone: then memory alone limits them
ONLY_WITH_NAMESPACES = {"list installed packages", "two thousand threads"}


def isolated(level: str) -> Iterator[Sandbox]:
    with Sandbox(workers=1, memory_mb=256, level=level) as sandbox:
        if not sandbox.isolation.startswith(level):
            pytest.skip(f"this machine has no {level}, but {sandbox.isolation}")
        yield sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    yield from isolated("namespaces")


def attack(sandbox: Sandbox, source: str, test: str) -> Verdict:
    verdict = sandbox.run(
        Asserts(source=source, tests=(test,), names=("f",), entry_point="f", time_limit=LIMIT_S)
    )
    assert sandbox.run(HONEST).verdict == "pass"
    return verdict


@pytest.mark.parametrize("name", FORGERIES)
def test_forged(sandbox: Sandbox, name: str) -> None:
    verdict = attack(sandbox, FORGERIES[name], f"assert f() == {SECRET!r}")
    assert verdict.verdict != "pass"
    assert verdict.passed == 0


@pytest.mark.parametrize("name", PROBES)
def test_probed(sandbox: Sandbox, name: str) -> None:
    if name in ONLY_WITH_NAMESPACES and "namespaces" not in sandbox.isolation:
        pytest.skip("needs namespaces")
    if "system_call(" in PROBES[name] and platform.machine() != "x86_64":
        pytest.skip("numbers of x86_64")
    # the body is one level in already; its further lines are indented by one as well
    verdict = attack(sandbox, PROBE.replace("{}", PROBES[name], 1), "assert f() == 'won'")
    assert verdict.verdict != "pass", verdict


def test_a_probe_that_may_succeed_does(sandbox: Sandbox) -> None:
    assert attack(sandbox, PROBE.replace("{}", "len([])", 1), "assert f() == 'won'").passed == 1


@pytest.mark.parametrize("name", EXHAUSTION)
def test_exhausted(sandbox: Sandbox, name: str) -> None:
    assert attack(sandbox, EXHAUSTION[name], f"assert f() == {SECRET!r}").verdict != "pass"


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(sandbox: Sandbox, name: str) -> None:
    script = Stdio(source=SCRIPTS[name], stdin="1\n2\n", expected=SECRET, time_limit=LIMIT_S)
    assert sandbox.run(script).verdict != "pass"
    assert sandbox.run(HONEST).verdict == "pass"


def test_there_are_sixty_attacks_and_more() -> None:
    assert len(FORGERIES) + len(PROBES) + len(EXHAUSTION) + len(SCRIPTS) >= 150
