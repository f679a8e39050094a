"""The comparison of runs: tables, charts, an HTML report."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from rich.table import Table

from drift.common import terminal
from drift.common.errors import ConfigError
from drift.common.files import write_json
from drift.comparison.charts import CHARTS, DASHES, looks, svg, write_sheets
from drift.comparison.records import (
    FIGURES,
    REPORT_TAG,
    RunGroup,
    RunRecord,
    by_test_set,
    from_experiment,
    from_sweep,
    grouped,
    horizon,
    pareto,
)
from drift.config.commands import CompareConfig
from drift.config.tracking import MlflowConfig
from drift.runs.differences import differing, unnamed
from drift.runs.stores import HTTP, STEP, comparison_address, open_experiment, ui_command

log = logging.getLogger("drift")

ACCURACIES = {"first": "before", "last": "final", "best": "best (validation)"}
FORMATS = {"steps": ".0f", "seconds": ".0f", "tokens/s": ".0f", "NFE": ".1f", "peak GiB": ".2f"}
SPEEDS = {"seconds": "s", "samples": "samples"}


def listed(items: Iterable[str], most: int = 6) -> str:
    """`a, b, c and 4 more`."""
    words = list(items)
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


class Comparison:
    """The groups of some runs and the numbers that are told of them."""

    def __init__(self, title: str, runs: list[RunRecord]):
        self.title = title
        self.runs = runs
        self.groups = grouped(runs)
        self.test_sets = by_test_set(self.groups)
        self.front = [group for same in self.test_sets for group in pareto(same)]
        self.settings = list(runs[0].settings)
        counted = [run for group in self.groups for run in group.runs]
        self.ends = {axis: horizon(counted, axis) for axis in SPEEDS}
        shown = [run for group in self.groups for run in group.shown] or counted[:1]
        self.compared = [run.compared for run in shown]  # of others not all is known

    def columns(self) -> list[str]:
        speeds = [f"mean to {end:.0f} {SPEEDS[axis]}" for axis, end in self.ends.items() if end]
        names = self.settings or ["run"]
        return [*names, "runs", *ACCURACIES.values(), *speeds, *FIGURES, "front"]

    def row(self, group: RunGroup) -> list[str]:
        """A group's cells, in the order of `columns`."""
        finished = sum(run.status == "finished" for run in group.runs)
        estimates = [group.accuracy(name) for name in ACCURACIES]
        estimates += [group.speed(axis, end) for axis, end in self.ends.items() if end]
        figures = [(name, group.figure(name)) for name in FIGURES]
        return [
            *(group.settings.values() if self.settings else [group.label]),
            f"{finished}/{len(group.runs)}",
            *("" if estimate is None else str(estimate) for estimate in estimates),
            *("" if value is None else format(value, FORMATS[name]) for name, value in figures),
            "*" if group in self.front else "",
        ]

    def findings(self) -> list[str]:
        return [*self.fastest(), *self.cautions()]

    def fastest(self) -> Iterator[str]:
        """Which setting learns fastest on each test set, and whether the intervals say so."""
        for (axis, end), same in product(self.ends.items(), self.test_sets):
            found = [(g.label, s) for g in same if end and (s := g.speed(axis, end))]
            if len(found) < 2:
                continue
            (name, best), (second, other) = sorted(found, key=lambda f: -f[1].value)[:2]
            verdict = "one run each, no interval over runs"
            if best.ci95 and other.ci95:
                apart = best.ci95[0] > other.ci95[1]
                verdict = "the intervals are apart" if apart else "the intervals overlap"
            yield (
                f"Highest mean validation accuracy over the first {end:.0f} {SPEEDS[axis]} "
                f"of training: {name}, {best}; next {second}, {other} ({verdict})."
            )

    def cautions(self) -> Iterator[str]:
        """What the numbers leave out, or hide."""
        told: set[str] = set()
        for group in self.groups:
            if hidden := unnamed([run.compared for run in group.shown], self.settings):
                told.update(hidden)
                yield f"Runs of {group.label} differ in more than the seed: {listed(hidden)}."
        if hidden := [key for key in unnamed(self.compared, self.settings) if key not in told]:
            yield f"Settings differ in more than their columns: {listed(hidden)}."
        if len(self.test_sets) > 1:
            yield (
                f"The settings have {len(self.test_sets)} sets of test problems: the findings and "
                "the front compare those with the same problems."
            )
        if left_out := [run.label for group in self.groups for run in group.left_out]:
            yield f"Left out, another run has the same settings and seed: {listed(left_out)}."
        if branches := [run for run in self.runs if run.branched]:
            yield (
                "Not compared by seconds and samples, since they begin at a checkpoint of another "
                f"run: {listed(f'{run.label} at step {run.lines[0][STEP]}' for run in branches)}."
            )

    def notes(self) -> list[str]:
        return [
            "before and final: greedy accuracy on the test split; best: the best on the "
            "validation split.",
            "Intervals are of 95 %: of one run Wilson's, for other problems; of several as far as "
            "Wilson's and Student's over runs, for other seeds. Two seeds tell little.",
            "mean to N s or samples: mean of the validation accuracy's curve up to there, where "
            "the shortest finished run ends; the higher, the faster it learned.",
            "Curves: mean over seeds, the reward's a running mean of 5 steps; bands reach from "
            "the lowest to the highest seed.",
            "NFE: network evaluations of a completion at the last evaluation.",
            "front: * where no other setting with the same test problems has both a final accuracy "
            "as high and an NFE as low (Pareto front of the means; intervals are not asked).",
        ]

    def counts(self) -> str:
        total = len(self.runs)
        finished = sum(run.status == "finished" for run in self.runs)
        return f"{total} runs, {finished} finished, {len(self.groups)} settings"

    def shared(self) -> list[tuple[str, str]]:
        """Settings that all runs have in common."""
        apart = differing(self.compared)
        return [item for item in sorted(self.compared[0].items()) if item[0] not in apart]

    def differences(self) -> list[tuple[str, list[str]]]:
        """Settings that are neither shared nor columns: the values in each group."""
        return [
            (
                key,
                [
                    " | ".join(dict.fromkeys(run.compared.get(key, "") for run in group.shown))
                    for group in self.groups
                ],
            )
            for key in differing(self.compared)
            if key not in self.settings
        ]

    def as_dict(self) -> dict[str, Any]:
        rows = [dict(zip(self.columns(), self.row(group), strict=True)) for group in self.groups]
        return {"title": self.title, "settings": rows, "findings": self.findings()}

    def markdown(self) -> str:
        lines = [self.columns(), ["---"] * len(self.columns()), *map(self.row, self.groups)]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def show(comparison: Comparison) -> None:
    """The table on the terminal."""
    table = Table(title=f"{comparison.title}: {comparison.counts()}")
    fixed = len(comparison.settings or ["run"])
    for number, name in enumerate(comparison.columns()):
        table.add_column(name, justify="left" if number < fixed else "right")
    for group in comparison.groups:
        table.add_row(*comparison.row(group))
    console = terminal.console(200)
    console.print(table)
    for run in comparison.runs:
        if run.status != "finished":
            reason = f": {run.error}" if run.error else ""
            console.print(f"run {run.name}: {run.status}{reason}", soft_wrap=True)
    for line in comparison.findings():
        console.print(line, highlight=False, soft_wrap=True)


def write_report(folder: Path, comparison: Comparison, address: str | None) -> list[Path]:
    """Write the report's files and return their paths."""

    folder.mkdir(parents=True, exist_ok=True)
    css = dict(zip(DASHES, ("solid", "dashed", "dotted", "dashed"), strict=True))
    rows: list[dict[str, Any]] = []
    for group, style in zip(comparison.groups, looks(comparison.groups), strict=True):
        rows.append(
            {
                "label": group.label,
                "cells": comparison.row(group),
                "color": style["color"],
                "dashes": css[style["linestyle"]],
            }
        )
    page = template().render(
        title=comparison.title,
        counts=comparison.counts(),
        findings=comparison.findings(),
        notes=comparison.notes(),
        columns=comparison.columns(),
        num_settings=len(comparison.settings or ["run"]),
        setting_names=comparison.settings,
        rows=rows,
        charts=[(chart.title, svg(chart, comparison.groups)) for chart in CHARTS],
        runs=[run_row(run) for run in comparison.runs],
        differences=comparison.differences(),
        shared=comparison.shared(),
        address=address,
    )
    report, markdown = folder / "report.html", folder / "table.md"
    report.write_text(page, encoding="utf-8")
    markdown.write_text(comparison.markdown(), encoding="utf-8")
    write_json(folder / "results.json", comparison.as_dict())
    sheets = write_sheets(folder, comparison.groups)
    return [report, markdown, folder / "results.json", *sheets]


def template() -> Any:
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True).get_template("compare.html")


def run_row(run: RunRecord) -> dict[str, Any]:
    last = run.evals.get("last")
    return {
        "name": run.name,
        "settings": run.settings,
        "seed": run.seed,
        "status": run.status,
        "steps": run.steps,
        "final": f"{last['accuracy']:.3f}" if last else "",
        "error": run.error,
    }


def log_report(store: MlflowConfig, name: str, files: list[Path]) -> None:
    """Put the files into MLflow, in one run for all reports of that name."""
    client, experiment = open_experiment(store)
    query = f"tags.{REPORT_TAG} = '{name}'"
    found = client.search_runs([experiment], filter_string=query)
    if found:
        run_id = found[0].info.run_id
    else:
        run = client.create_run(experiment, run_name=f"compare {name}", tags={REPORT_TAG: name})
        run_id = run.info.run_id
    for path in files:
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id)


def mlflow_address(store: MlflowConfig, runs: list[RunRecord]) -> str | None:
    """The page of the MLflow UI that compares the runs; None where it has none of them."""
    ids = [run.run_id for run in runs if run.run_id]
    if not ids:
        return None
    _, experiment = open_experiment(store)
    base = store.uri if store.uri.startswith(HTTP) else "http://127.0.0.1:5000"
    return comparison_address(base, ids, [experiment])


def read_runs(config: CompareConfig) -> tuple[str, list[RunRecord], MlflowConfig | None]:
    """Title, runs, and the MLflow store that has them."""
    if config.sweep is not None:
        runs, store = from_sweep(Path(config.sweep).expanduser())
        return config.sweep, runs, store
    if not isinstance(config.tracking, MlflowConfig):
        raise ConfigError("an experiment is read from MLflow; use tracking=mlflow, or sweep=FOLDER")
    return config.tracking.experiment, from_experiment(config.tracking), config.tracking


@contextmanager
def tolerant() -> Iterator[None]:
    """A store may fail in any way; the report is written without it."""
    try:
        yield
    except Exception as error:
        log.warning("MLflow: %s", str(error).splitlines()[0])


def run(config: CompareConfig) -> None:
    """Read the runs, print, write, log to MLflow, say where to look."""
    title, runs, store = read_runs(config)
    if not any(run.lines for run in runs):
        raise ConfigError(f"{title}: none of its {len(runs)} runs has logged a step")
    comparison = Comparison(title, runs)
    show(comparison)
    where = Path(config.sweep or "outputs") / "compare"
    folder = Path(config.output or (where if config.sweep else where / title)).expanduser()
    address = None
    if store is not None:
        with tolerant():
            address = mlflow_address(store, runs)
    files = write_report(folder, comparison, address)
    if store is not None and address is not None:
        with tolerant():
            log_report(store, title, files)
    log.info("report: %s", folder / "report.html")
    if store is not None and address is not None:
        if not store.uri.startswith(HTTP):
            log.info("MLflow: %s", ui_command(store))
        print(address)
