"""Jobs through submitit: what SLURM says before one is submitted, and when one was lost."""

import re
import shutil
import subprocess
from typing import Any

from omegaconf import DictConfig, OmegaConf

ASKED_FOR = (
    "cluster.partition, account, qos, num_machines, num_processes, gpus_per_node, "
    "cpus_per_process, memory_gb, time_limit_min"
)


def difference(sweep: DictConfig, job: DictConfig) -> str | None:
    """Why a job of a sweep cannot go the way of the whole sweep; None if it can.

    Hydra launches all jobs at once with the launcher of the sweep. A job whose own overrides would
    change it (`cluster.partition=a,b`) must not be sent another way silently.
    """
    of_sweep, of_job = settings(sweep), settings(job)
    for key in sorted(of_sweep.keys() | of_job.keys()):
        here, there = of_job.get(key), of_sweep.get(key)
        if here != there:
            return (
                f"hydra.launcher.{key}={null(here)}, but {null(there)} for the whole sweep, whose "
                "jobs are launched together; run one command for each value"
            )
    return None


def null(value: object) -> str:
    return "null" if value is None else str(value)


def settings(config: DictConfig) -> dict[str, Any]:
    """How a config's jobs are launched, without the folder, whose name has the time in it."""
    launcher: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    return {key: value for key, value in launcher.items() if key != "submitit_folder"}


def refusal(sweep: DictConfig) -> str | None:
    """Why SLURM would not take the jobs of a sweep; None if it would, or is not asked to."""
    if sweep.hydra.runtime.choices["hydra/launcher"] != "submitit_slurm":
        return None
    if shutil.which("sbatch") is None:
        return (
            "cluster=slurm: there is no sbatch in PATH; type the command where SLURM is, "
            "or use cluster=local or submitit_local"
        )
    tried = subprocess.run(
        ["sbatch", "--test-only"], input=script(sweep), capture_output=True, text=True
    )
    if tried.returncode == 0:
        return None
    reason = "; ".join(line for line in tried.stderr.splitlines() if line.strip())
    return f"cluster=slurm: {reason}; check {ASKED_FOR}"


def script(sweep: DictConfig) -> str:
    """The batch script that submitit would send for one job."""
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
    from submitit import AutoExecutor, SlurmExecutor

    shared = OmegaConf.structured(BaseQueueConf).keys()
    asked = {key: value for key, value in settings(sweep).items() if key != "_target_"}
    del asked["max_num_timeout"]  # submitit's own
    executor = AutoExecutor(folder=sweep.hydra.sweep.dir, cluster="slurm")
    executor.update_parameters(
        **{key if key in shared else f"slurm_{key}": value for key, value in asked.items()}
    )
    inner = executor._executor
    assert isinstance(inner, SlurmExecutor)
    return inner._make_submission_file_text("true", "")


def lost_job(error: BaseException) -> str | None:
    """What submitit raises when a job has no result, in one line; None for another error."""
    if type(error).__module__ != "submitit.core.utils":
        return None
    said = r"Job (\S+) .*with path (\S+)_result.pkl\s+has not produced any output \(state: (\w+)\)"
    found = re.search(said, str(error))
    if found is None:
        return f"a job failed: {str(error).strip().splitlines()[-1]}"
    job, path, state = found.groups()
    return f"job {job} ended without a result ({state}), see {path}_log.err; the others go on"
