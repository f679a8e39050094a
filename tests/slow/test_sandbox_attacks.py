"""The attacks of tests/unit at the second and third level of isolation."""

from collections.abc import Iterator

import pytest

from drift.sandbox import Sandbox
from tests.unit.sandbox.test_sandbox_attacks import (
    isolated,
    test_a_probe_that_may_succeed_does as test_a_probe_that_may_succeed_does,
    test_exhausted as test_exhausted,
    test_forged as test_forged,
    test_probed as test_probed,
    test_script as test_script,
)


@pytest.fixture(scope="module", params=["landlock", "seccomp"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    yield from isolated(request.param)
