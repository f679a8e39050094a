"""Runs of several ranks, for real: ZeRO and DDP on CPU processes, every way to start them."""

from tests.conftest import Run


def test_prompts_that_the_ranks_cannot_share_are_refused(run: Run) -> None:
    done = run("train", "cluster.num_processes=3", check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "drift: rollout.prompts_per_step=32 cannot be shared by 3 ranks alike; "
        "use a multiple of 3\n"
    )
