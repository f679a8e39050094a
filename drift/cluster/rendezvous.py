"""How the processes of a run find each other: the address and port that torch is told."""

import os
import socket
import subprocess
import sys

from drift.common.ranks import ALONE, STARTED_BY, Ranks, find
from drift.config.cluster import ClusterConfig

USUAL_PORT = 29_500  # torchrun's


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
