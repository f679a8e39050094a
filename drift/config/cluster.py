"""Settings of processes and machines. Imports no torch."""

from dataclasses import dataclass

from omegaconf import MISSING

from drift.config.bounds import between, not_negative, positive
from drift.config.registry import Registry


@dataclass
class ClusterConfig:
    """Processes of one run. Under torchrun, accelerate launch or srun theirs are taken."""

    name: str = MISSING  # of the option
    # on each machine; null = one for each GPU, one without
    num_processes: int | None = positive(None)
    num_machines: int = positive(1)  # machines that share the run
    machine_rank: int = not_negative(0)  # of this machine, from 0
    main_address: str = "127.0.0.1"  # of the machine of rank 0
    # null = a free one; with several machines 29500
    main_port: int | None = between(None, 1, 65535)
    threads: int | None = positive(None)  # CPU threads of a process; null = torch's choice
    # DeepSpeed ZeRO 0 to 3; null = 3 on several GPUs, else 0
    zero_stage: int | None = between(None, 0, 3, "null is 3 on several GPUs, else 0")
    offload_optimizer: bool = False  # AdamW's state to CPU memory
    offload_parameters: bool = False  # stage 3: the weights to CPU memory
    bucket_mb: int = positive(200)  # MB that one collective moves
    deepspeed: str | None = None  # a DeepSpeed JSON file, whose settings go before ours
    timeout_s: float = positive(1800.0)  # a run without progress for so long is ended


@dataclass
class SubmititConfig(ClusterConfig):
    """Jobs through submitit."""

    gpus_per_node: int | None = positive(None)  # one for each process; null = none is asked for
    time_limit_min: int = positive(1440)  # minutes; the job is ended then


@dataclass
class SlurmConfig(SubmititConfig):
    """Jobs of SLURM, whose tasks are the ranks. A null leaves the choice to SLURM."""

    partition: str | None = None  # of sbatch
    account: str | None = None  # of sbatch
    qos: str | None = None  # of sbatch
    cpus_per_process: int = positive(8)  # cores of each rank
    memory_gb: int | None = positive(None)  # of a machine
    signal_delay_s: int = not_negative(300)  # the signal comes so long before the end
    max_restarts: int = not_negative(20)  # after pre-emption or the time limit
    setup: str = ""  # shell commands before the job


CLUSTERS = Registry[ClusterConfig](
    "cluster", {"base": ClusterConfig, "submitit": SubmititConfig, "slurm": SlurmConfig}
)
