"""Which process of a run this is: alone, or one of several that something started."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ranks:
    """Ranks(number=8, rank=3, local=3, local_number=8, started_by="torchrun")."""

    number: int
    rank: int
    local: int  # among the processes of this machine
    local_number: int
    started_by: str


ALONE = Ranks(1, 0, 0, 1, "itself")
STARTED_BY = "DRIFT_STARTED_BY"  # set by launch.py in the processes it starts


def find() -> Ranks:
    """From the environment that torchrun, accelerate launch, srun or launch.py gives a process."""
    env = os.environ
    if "LOCAL_RANK" in env and "WORLD_SIZE" in env:
        launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in env else "a launcher"
        if "ACCELERATE_MIXED_PRECISION" in env:
            launcher = "accelerate launch"
        number, local = int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"])
        local_number = int(env["LOCAL_WORLD_SIZE"]) if "LOCAL_WORLD_SIZE" in env else number
        by = env.get(STARTED_BY, launcher)
        return Ranks(number, int(env["RANK"]), local, local_number, by)
    if "SLURM_STEP_NUM_TASKS" in env and int(env["SLURM_STEP_NUM_TASKS"]) > 1:
        number, rank = int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_PROCID"])
        per_node = env["SLURM_STEP_TASKS_PER_NODE"].partition("(")[0].partition(",")[0]
        return Ranks(number, rank, int(env["SLURM_LOCALID"]), int(per_node), "srun")
    return ALONE
