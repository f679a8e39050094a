"""The processes of a run on this machine: one for each rank, ended together."""

import importlib
import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from omegaconf import OmegaConf

from drift.cluster import rendezvous
from drift.cluster.preemption import StopRequest, patience_s
from drift.common import ranks
from drift.common.errors import DriftError, PreemptedError, RankError
from drift.config.cluster import ClusterConfig

GRACE_S = 3.0  # for the other ranks to end by themselves when one is dead
TIDY_S = 120.0  # the same when one has obeyed a signal: the first rank tidies up and reports
log = logging.getLogger("drift")


def num_processes(cluster: ClusterConfig) -> int:
    """Of this machine."""
    if cluster.num_processes is not None:
        return cluster.num_processes
    from drift.cluster.engine import gpu_names

    return max(1, len(gpu_names()))


def is_needed(cluster: ClusterConfig) -> bool:
    """Whether this process has to start the ranks, or is one that something else started.

    One process of ZeRO is started too: DeepSpeed leaves what the next job of a sweep would meet.
    """
    several = cluster.num_machines > 1 or bool(cluster.zero_stage) or num_processes(cluster) > 1
    return ranks.find() is ranks.ALONE and several


def in_ranks(command: str, run: Callable[[Any], None]) -> Callable[[Any], None]:
    """`drift.<command>.run`, here or in the processes that the cluster asks for."""

    def run_or_start(config: Any) -> None:
        if is_needed(config.cluster):
            start(command, config)
        else:
            run(config)

    return run_or_start


def start(command: str, config: Any) -> None:
    """Run `drift.<command>.run(config)` in the processes that this machine has in the cluster.

    Raises:
        RankError: one died; it is named, and the others were ended.
        PreemptedError: a signal ended them all.
    """
    cluster, size = config.cluster, num_processes(config.cluster)
    number, first = size * cluster.num_machines, size * cluster.machine_rank
    address, port = cluster.main_address, cluster.main_port
    if port is None:  # several machines must agree
        port = rendezvous.free_port() if cluster.num_machines == 1 else rendezvous.USUAL_PORT
    logging_settings = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = []
    words: list[Connection] = []
    for local in range(size):
        place = ranks.Ranks(number, first + local, local, size, "drift")
        reader, writer = context.Pipe(duplex=False)
        arguments = (command, config, place, address, port, logging_settings, writer)
        processes.append(context.Process(target=work, args=arguments))
        words.append(reader)
    for process in processes:
        process.start()
    with Forwarder(processes, cluster) as request:
        dead = first_dead(processes)
        if dead is None:
            return
        left = processes[dead].exitcode == PreemptedError.exit_code
        end(processes, TIDY_S if left else GRACE_S)
        error = explain(first + dead, processes[dead].exitcode, last_words(words[dead]))
        if isinstance(error, PreemptedError) and request.signum:
            request.end(request.signum, 0, str(error).partition(": ")[2])
        raise error


class Forwarder(StopRequest):
    """Hands the signals that announce the end on to the ranks, which save and leave."""

    def __init__(self, processes: list[BaseProcess], cluster: ClusterConfig):
        super().__init__(patience_s(cluster))
        self.processes = processes

    def note(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGTERM and callable(self.before[signum]):
            return  # submitit's handler, which ignores it
        super().note(signum, frame)
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, signum)

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None:  # also ctrl-c
            end(self.processes)
        super().__exit__(*exception)


def first_dead(processes: list[BaseProcess]) -> int | None:
    """Wait; which process failed first, None if all did their work.

    One that was killed is the cause, whatever the others say of their connection to it.
    """
    while True:
        wait([process.sentinel for process in processes if process.exitcode is None], timeout=1.0)
        codes = [process.exitcode for process in processes]
        killed = [i for i, code in enumerate(codes) if code is not None and code < 0]
        failed = [i for i, code in enumerate(codes) if code is not None and code > 0]
        if killed or failed:
            return (killed or failed)[0]
        if all(code == 0 for code in codes):
            return None


def end(processes: list[BaseProcess], patience_s: float = GRACE_S) -> None:
    """Give the processes a moment to end by themselves, then kill them."""
    until = time.monotonic() + patience_s
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    for process in processes:
        process.kill()
        process.join()


def last_words(reader: Connection) -> str:
    with suppress(EOFError):
        return str(reader.recv()) if reader.poll() else ""
    return ""


def explain(rank: int, code: int | None, words: str) -> DriftError:
    """What a dead rank died of, the cause in the first line."""
    if code == PreemptedError.exit_code:
        return PreemptedError(words)
    if code is not None and code < 0:
        return RankError(f"rank {rank} was killed by {signal.Signals(-code).name}")
    if not words:
        return RankError(f"rank {rank} ended with exit code {code}")
    lines = words.rstrip().splitlines()
    below = "\n".join(lines[:-1])
    return RankError(f"rank {rank}: {lines[-1]}" + (f"\n{below}" if below else ""))


def work(
    command: str,
    config: Any,
    place: ranks.Ranks,
    address: str,
    port: int,
    logging_settings: Any,
    writer: Connection,
) -> None:
    """One rank, in a process of its own."""
    rendezvous.export(place, address, port)
    configure_log(OmegaConf.create(logging_settings if place.rank == 0 else quieter(place.rank)))
    try:
        importlib.import_module(f"drift.{command}").run(config)
    except DriftError as error:
        leave(writer, str(error), error.exit_code)
    except KeyboardInterrupt:
        os._exit(130)
    except Exception:
        leave(writer, traceback.format_exc(), 1)
    leave(writer, "", 0)


def leave(writer: Connection, words: str, code: int) -> None:
    """End at once: gloo's threads sometimes abort the interpreter's own exit."""
    writer.send(words)
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    os._exit(code)


def quieter(rank: int) -> dict[str, Any]:
    """Logging of all ranks but the first: warnings, with the rank's number."""
    return {
        "version": 1,
        "formatters": {"rank": {"format": f"rank {rank}: %(message)s"}},
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "rank"}},
        "root": {"level": "WARNING", "handlers": ["console"]},
        "disable_existing_loggers": False,
    }
