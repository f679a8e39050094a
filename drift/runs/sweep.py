"""The jobs of a sweep: what each of them is, how it ended, what is left to run.

A job notes its state in `job.json` in its own folder, where a training run keeps `summary.json`
too. `sweep.json` in the sweep's folder is computed from them, on whatever machine they were
written. A job that fails is noted and told, and the others go on; a finished one is not run again.
"""

import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.conf import HydraConf

from drift.cluster.preemption import RequeuedExit
from drift.common import ranks, terminal
from drift.common.errors import ConfigError, PreemptedError
from drift.common.files import in_use, is_locked, locked, locked_shared, read_json, write_json
from drift.config.checks import validate
from drift.config.commands import EvalRunConfig, RunConfig
from drift.config.tracking import MlflowConfig
from drift.runs.stores import open_experiment
from drift.runs.tracking import JOB, SUMMARY, MetricsFile

if TYPE_CHECKING:
    from rich.table import Table

SWEEP = "sweep.json"
LOCK = ".job.lock"  # in the folder of a job, held while it runs
STYLES = {
    "finished": "green",
    "failed": "red",
    "killed": "red",
    "preempted": "yellow",
    "running": "yellow",
}
log = logging.getLogger("drift")
begun: list[Path] = []  # the folder of the sweep that this process began


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCard:
    """What Hydra says of the job that runs in this process.

    JobCard(num=1, overrides=["masking=all"], folder=Path("sweep/1"), sweep=Path("sweep"), id="1")
    """

    num: int
    overrides: list[str]
    folder: Path
    sweep: Path
    id: str  # of the queue, for example SLURM's


def job_card(hydra: HydraConf) -> JobCard:
    """The job of a process, from `HydraConfig.get()`."""
    return JobCard(
        num=hydra.job.num,
        overrides=list(hydra.overrides.task),
        folder=Path(hydra.runtime.output_dir),
        sweep=Path(hydra.sweep.dir),
        id=str(hydra.job.id),
    )


def is_dead(folder: Path, host: str | None) -> bool:
    """Whether nobody is at a job that was begun on this machine; of others nothing is known."""
    if host != socket.gethostname() or not (folder / LOCK).exists():
        return False
    return not is_locked(folder / LOCK) and not in_use(folder)  # nor started again by itself


def by_key(overrides: list[str]) -> dict[str, str]:
    """{"masking": "all"} of ["masking=all"]."""
    pairs = (override.split("=", 1) for override in overrides if "=" in override)
    return {key.lstrip("+"): value for key, value in pairs}


def plan(sweep: Path, command: str, swept: list[str], jobs: list[list[str]]) -> None:
    """Write sweep.json before the first job, or take up the one that is there.

    Args:
        sweep: the folder.
        command: what to type to run what is missing.
        swept: keys of the settings that differ between jobs.
        jobs: overrides of each job, empty if they are chosen as the sweep goes.

    Raises:
        ConfigError: the folder holds the jobs of another sweep.
    """
    begun[:] = [sweep]
    before = read_json(sweep / SWEEP, missing_ok=True)
    if before:
        old = [job["overrides"] for job in before["jobs"]]
        for num, (was, now) in enumerate(zip(old, jobs, strict=False)):
            if was != now:
                raise ConfigError(
                    f"hydra.sweep.dir={sweep} holds another sweep: its job {num} is "
                    f"`{' '.join(was)}`, not `{' '.join(now)}`; choose another folder"
                )
        if len(old) != len(jobs):
            raise ConfigError(
                f"hydra.sweep.dir={sweep} holds a sweep of {len(old)} jobs, not {len(jobs)}; "
                "choose another folder"
            )
        return
    sweep.mkdir(parents=True, exist_ok=True)
    entries = [
        {"num": num, "overrides": overrides, "folder": None} for num, overrides in enumerate(jobs)
    ]
    write_json(sweep / SWEEP, {"command": command, "swept": swept, "jobs": entries})
    refresh(sweep)


def make_stores(configs: list[Any]) -> None:
    """Make the MLflow stores and experiments of a sweep, so that its jobs do not race to it."""
    wanted = {
        (config.tracking.uri, config.tracking.experiment): config.tracking
        for config in configs
        if isinstance(config, RunConfig | EvalRunConfig)
        and isinstance(config.tracking, MlflowConfig)
    }
    for tracking in wanted.values():
        try:
            open_experiment(tracking)
        except Exception as error:  # a store may fail in any way; the jobs go on without it
            log.warning("tracking: %s: %s", tracking.uri, str(error).splitlines()[0])


def refresh(sweep: Path, started: JobCard | None = None) -> dict[str, Any]:
    """Compute sweep.json from what the jobs wrote.

    Args:
        sweep: the folder.
        started: a job whose folder is not known yet.

    Returns:
        Its content.
    """
    with locked(sweep / ".sweep.lock"):
        content = read_json(sweep / SWEEP)
        if started is not None:
            entry = {"num": started.num, "overrides": started.overrides}
            entry["folder"] = os.path.relpath(started.folder, sweep)
            others = [job for job in content["jobs"] if job["num"] != started.num]
            content["jobs"] = sorted([*others, entry], key=lambda job: job["num"])
        content["jobs"] = [
            job | state(sweep / job["folder"] if job["folder"] else None) for job in content["jobs"]
        ]
        write_json(sweep / SWEEP, content)
    return content


def state(folder: Path | None) -> dict[str, Any]:
    """What a job's own files say: status, error, steps, seconds, accuracy, MLflow run.

    The newer of job.json and summary.json knows the status: a job can also be run again by itself.
    """
    if folder is None:
        return {"status": "waiting"}
    job, summary = (read_json(folder / name, missing_ok=True) for name in (JOB, SUMMARY))
    newest = job
    if summary and (folder / SUMMARY).stat().st_mtime > (folder / JOB).stat().st_mtime:
        newest = summary
    result: dict[str, Any] = {"status": newest["status"], "error": newest.get("error")}
    if result["status"] == "running" and is_dead(folder, job.get("host")):
        result = {"status": "killed", "error": "its process ended without a word"}
    if summary:
        last = summary["eval"].get("last")
        result |= {
            "steps": summary["steps"],
            "wall_s": summary["wall_s"],
            "accuracy": last and last["accuracy"],
            "mlflow_run_id": summary["mlflow_run_id"],
        }
    return result


def note(card: JobCard, **changes: Any) -> None:
    """Write job.json, and sweep.json from it; the first rank alone."""
    if ranks.find().rank == 0:
        write_json(card.folder / JOB, read_json(card.folder / JOB, missing_ok=True) | changes)
        refresh(card.sweep, card)


def attempt(
    card: JobCard,
    config: Any,
    run: Callable[[Any], None],
    explain: Callable[[BaseException], str | None],
) -> float | None:
    """Run one job of a sweep; a failure is noted and told, and the sweep goes on.

    Args:
        card: the job.
        config: its settings, checked once more: a sweeper may choose values as it goes.
        run: the command.
        explain: one line for a user's mistake, None for a bug, whose traceback is shown.

    Returns:
        The last validation accuracy of a training run, for sweepers that look for its maximum;
        None of a job that failed and of other commands.

    Raises:
        KeyboardInterrupt: the whole sweep ends; what ran so far is shown.
        PreemptedError, RequeuedExit: a signal ended the job, which is saved.
    """
    before = read_json(card.folder / JOB, missing_ok=True)
    if before and before["overrides"] != card.overrides:
        raise ConfigError(
            f"{card.folder} holds another job, `{' '.join(before['overrides'])}`; "
            "choose another hydra.sweep.dir"
        )
    if before and state(card.folder)["status"] == "finished":
        log.info("job %d is finished", card.num)
        return validation_accuracy(card.folder)
    with locked_shared(card.folder / LOCK):  # every rank has it, others see it
        return work(card, config, run, explain)


def work(
    card: JobCard,
    config: Any,
    run: Callable[[Any], None],
    explain: Callable[[BaseException], str | None],
) -> float | None:
    """A job that is to be run, from its beginning to its end; see `attempt`."""
    swept = by_key(card.overrides)
    wanted = read_json(card.sweep / SWEEP)["swept"]
    note(
        card,
        num=card.num,
        overrides=card.overrides,
        sweep=str(card.sweep),
        job_id=card.id,
        swept={key: swept[key] for key in wanted if key in swept},
        status="running",
        error=None,
        host=socket.gethostname(),
        started=time.time(),
        ended=None,
    )
    if words := what_is_left(card.sweep):
        log.info("job %d of the sweep; %s", card.num, words)
    try:
        validate(config)
        run(config)
    except KeyboardInterrupt:
        note(card, status="killed", error="interrupted", ended=time.time())
        tell(card.sweep)
        print(f"drift: interrupted; run what is missing: {command(card.sweep)}", file=sys.stderr)
        raise
    except (PreemptedError, RequeuedExit):
        note(card, status="preempted", error=None, ended=time.time())
        raise
    except (Exception, SystemExit) as error:  # one job's failure is the sweep's data
        if (reason := failure(error, explain)) is not None:
            note(card, status="failed", error=reason, ended=time.time())
            return None
    note(card, status="finished", error=None, ended=time.time())
    return validation_accuracy(card.folder)


def what_is_left(sweep: Path) -> str:
    """`12 more wait, 34:00 left`, by the jobs that have ended; empty if none waits."""
    content = read_json(sweep / SWEEP)
    waiting = [job for job in content["jobs"] if job["status"] == "waiting"]
    running = [job for job in content["jobs"] if job["status"] == "running"]
    notes = [
        read_json(sweep / job["folder"] / JOB, missing_ok=True)
        for job in content["jobs"]
        if job["folder"]
    ]
    took = [entry["ended"] - entry["started"] for entry in notes if entry.get("ended")]
    if not waiting:
        return ""
    if not took:
        return f"{len(waiting)} more wait"
    rounds = (len(waiting) + len(running)) / max(1, len(running))
    return f"{len(waiting)} more wait, {terminal.in_words(rounds * sum(took) / len(took))}"


def failure(error: BaseException, explain: Callable[[BaseException], str | None]) -> str | None:
    """Tell why a job failed; None if it left with exit code 0."""
    if isinstance(error, SystemExit):
        if error.code in (None, 0):
            return None
        reason = str(error.code) if isinstance(error.code, str) else f"exit code {error.code}"
    else:
        reason = explain(error) or ""
        if not reason:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            log.error("a bug, or a fault of the machine", exc_info=error)
    reason = reason.removeprefix("drift: ")
    log.error("this job failed, the others go on: %s", reason)
    return reason


def validation_accuracy(folder: Path) -> float | None:
    lines = MetricsFile(folder / "metrics.jsonl").lines()
    found = [line["eval/accuracy"] for line in lines if "eval/accuracy" in line]
    return found[-1] if found else None


def tell(sweep: Path) -> int:
    """Print how each job ended.

    Returns:
        How many jobs are not finished.
    """
    content = refresh(sweep)
    jobs = content["jobs"]
    console = terminal.console(120)
    console.print(table(content, str(sweep)))
    for job in jobs:
        if job.get("error"):
            console.print(f"job {job['num']}: {job['error']}", soft_wrap=True)
    if any(job.get("steps") for job in jobs):
        console.print(f"compare: python -m drift.compare sweep={sweep}", soft_wrap=True)
    return sum(job["status"] != "finished" for job in jobs)


def tell_begun() -> str:
    """Print the jobs of the sweep that this process began; says how to run what is missing."""
    if not begun:
        return ""
    tell(begun[0])
    return f"; run what is missing: {command(begun[0])}"


def command(sweep: Path) -> str:
    """What to type to take a sweep up again."""
    return read_json(sweep / SWEEP)["command"]


def table(content: dict[str, Any], title: str) -> "Table":
    """A row for each job of sweep.json."""
    from rich.table import Table
    from rich.text import Text

    swept = content["swept"]
    shown = Table("job", *swept, "status", "steps", "accuracy", "seconds", title=title)
    for job in content["jobs"]:
        settings = by_key(job["overrides"])
        status = Text(job["status"], STYLES.get(job["status"], "dim"))
        figures = [
            form.format(job[name]) if job.get(name) is not None else ""
            for name, form in (("steps", "{}"), ("accuracy", "{:.3f}"), ("wall_s", "{:.0f}"))
        ]
        shown.add_row(str(job["num"]), *(settings.get(k, "") for k in swept), status, *figures)
    return shown
