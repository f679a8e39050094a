"""Which process of a run this is: alone, or one of several that something started."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass

from drift.cluster_config import ClusterConfig


@dataclass(frozen=True, slots=True)
class Ranks:
    """Ranks(number=8, rank=3, local=3, local_number=8, started_by="torchrun")."""

    number: int
    rank: int
    local: int  # among the processes of this machine
    local_number: int
    started_by: str


ALONE = Ranks(1, 0, 0, 1, "itself")
USUAL_PORT = 29_500  # torchrun's
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


def export(ranks: Ranks, address: str, port: int) -> None:
    """Tell torch, Accelerate and DeepSpeed, which all read these variables."""
    os.environ |= {
        "RANK": str(ranks.rank),
        "WORLD_SIZE": str(ranks.number),
        "LOCAL_RANK": str(ranks.local),
        "LOCAL_WORLD_SIZE": str(ranks.local_number),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        STARTED_BY: ranks.started_by,
    }
    if address == "127.0.0.1" and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else it asks the name server


def settle(cluster: ClusterConfig, *, always: bool) -> Ranks:
    """The ranks of this run, and their environment where it is not there yet.

    Args:
        cluster: of the run.
        always: a process alone needs the environment too (ZeRO on one process).
    """
    ranks = find()
    if ranks.started_by == "srun":
        export(ranks, *slurm_address())
    elif ranks is ALONE and always:
        export(ranks, "127.0.0.1", cluster.main_port or free_port())
    return ranks


def slurm_address() -> tuple[str, int]:
    """The first machine of the job step, and a port that follows from the job's number."""
    nodes = os.environ["SLURM_STEP_NODELIST"]
    shown = subprocess.run(
        ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
    )
    return shown.stdout.split()[0], 20_000 + int(os.environ["SLURM_JOB_ID"]) % 20_000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
