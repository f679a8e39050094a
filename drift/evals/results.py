"""The numbers of an evaluation grid: of each cell, of pairs of checkpoints, and the table of all.

`results.json` and `results.md` in the results folder are computed from the cells that are there,
whichever process wrote them: jobs of a sweep that run at the same time share one table.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from drift.common.files import (
    digest,
    locked,
    read_json,
    survives_a_full_disk,
    write_json,
    write_text,
)
from drift.common.stats import bootstrap, mcnemar, pass_at_k, wilson
from drift.evals.cell import CELL, Cell, CellState
from drift.rollout.evaluate import Completion
from drift.traces.page import write_trace

CELLS = "cells"
PROTOCOL = "protocol.json"
COMPARISONS = "comparisons.json"


def by_problem(rows: list[Completion]) -> list[list[Completion]]:
    """The samples of each problem, in the order of problems."""
    found: list[list[Completion]] = []
    for row in rows:
        if row.sample == 0:
            found.append([])
        found[-1].append(row)
    return found


def majority(samples: list[Completion]) -> Completion | None:
    """A completion with the answer most samples agree on (self-consistency, arXiv 2203.11171).

    Answers are the same if they are written alike but for white space. A completion without an
    answer does not vote; of answers with as many votes the first drawn counts; None without votes.
    """
    voters = [row for row in samples if row.answer is not None]
    votes = Counter("".join(str(row.answer).split()) for row in voters)
    if not votes:
        return None
    winner, _ = votes.most_common(1)[0]  # of equals the first that was counted
    return next(row for row in voters if "".join(str(row.answer).split()) == winner)


def shares(k: int, problems: list[list[Completion]]) -> list[float]:
    """pass@k of each problem."""
    return [pass_at_k(len(s), sum(row.correct for row in s), k) for s in problems]


def powers(samples: int) -> list[int]:
    """The k that are reported: 2, 4, 8, ... below the number of samples, and that number."""
    below = [2**i for i in range(1, samples.bit_length()) if 2**i < samples]
    return [*below, samples] if samples > 1 else []


def summarize(rows: list[Completion], decode_s: float) -> dict[str, Any]:
    """The numbers of a cell.

    Args:
        rows: every completion, the samples of a problem adjacent, as many for each.
        decode_s: seconds of decoding.

    Returns:
        `accuracy` (pass@1) with its interval (Wilson's for one sample a problem, else the bootstrap
        over problems), `pass_at` and `majority` where there are several samples, cost.
    """
    problems = by_problem(rows)
    samples, n = len(problems[0]), len(problems)
    first = shares(1, problems)
    summary: dict[str, Any] = {
        "n": n,
        "samples": samples,
        "accuracy": fmean(first),
        "ci95": list(wilson(sum(r.correct for r in rows), n) if samples == 1 else bootstrap(first)),
        "nfe_mean": fmean(row.nfe for row in rows),
        "length_mean": fmean(row.length for row in rows),
        "truncated_frac": fmean(not row.finished for row in rows),
        "tokens_per_s": sum(row.tokens for row in rows) / decode_s,
        "decode_s": decode_s,
        "verdicts": dict(Counter(row.verdict for row in rows).most_common()),
    }
    if samples > 1:
        values = {k: shares(k, problems) for k in powers(samples)}
        summary["pass_at"] = {
            str(k): {"value": fmean(v), "ci95": list(bootstrap(v))} for k, v in values.items()
        }
        right = sum(bool((vote := majority(s)) and vote.correct) for s in problems)
        summary["majority"] = {"value": right / n, "ci95": list(wilson(right, n))}
    return summary


def outcomes(rows: list[Completion]) -> dict[tuple[str, int], tuple[int, int]]:
    """Of each problem: right completions, completions. A file may hold a problem twice."""
    seen: Counter[str] = Counter()
    found: dict[tuple[str, int], tuple[int, int]] = {}
    for samples in by_problem(rows):
        key = samples[0].key
        found[key, seen[key]] = (sum(row.correct for row in samples), len(samples))
        seen[key] += 1
    return found


def compare(first: list[Completion], second: list[Completion]) -> dict[str, Any]:
    """The second checkpoint against the first, problem by problem.

    Returns:
        `difference` of pass@1 with the bootstrap interval over problems; with one sample a problem
        also how many only one of the two solves, and McNemar's exact p-value.
    """
    a, b = outcomes(first), outcomes(second)
    keys = [key for key in a if key in b]  # a problem too long for one of them is left out
    changes = [b[key][0] / b[key][1] - a[key][0] / a[key][1] for key in keys]
    result: dict[str, Any] = {"n": len(keys)}
    if not keys:
        return result
    result |= {"difference": fmean(changes), "ci95": list(bootstrap(changes))}
    if max(a[key][1] for key in keys) == 1:
        only_first, only_second = (sum(c == sign for c in changes) for sign in (-1, 1))
        result |= {
            "only_first": only_first,
            "only_second": only_second,
            "p": mcnemar(only_first, only_second),
        }
    return result


def metrics(summary: dict[str, Any]) -> dict[str, float]:
    """A cell's summary as metrics of a run (docs/metrics.md)."""
    low, high = summary["ci95"]
    found = {
        "eval/accuracy": summary["accuracy"],
        "eval/accuracy_low": low,
        "eval/accuracy_high": high,
        "eval/nfe": summary["nfe_mean"],
        "eval/length": summary["length_mean"],
        "eval/truncated_frac": summary["truncated_frac"],
        "eval/tokens_per_s": summary["tokens_per_s"],
    }
    for k, entry in summary.get("pass_at", {}).items():
        found[f"eval/pass_{k}"] = entry["value"]
    if "majority" in summary:
        found[f"eval/majority_{summary['samples']}"] = summary["majority"]["value"]
    return found


# ---- the results folder


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolResults:
    """The finished cells of one protocol, in the order in which they came."""

    protocol: dict[str, Any]
    cells: list[CellState]
    comparisons: list[dict[str, Any]]  # with the first checkpoint


def done_cells(folder: Path) -> list[Cell]:
    """The cells of a protocol with a result; of a checkpoint that was changed the newest."""
    paths = sorted(folder.glob(f"*/{CELL}"), key=lambda path: path.stat().st_mtime)
    cells = [Cell(path.parent) for path in paths]
    done = {c.progress.checkpoint: c for c in cells if c.progress.summary is not None}
    return sorted(
        done.values(), key=lambda cell: (cell.progress.position, cell.progress.checkpoint)
    )


def compare_cells(folder: Path, cells: list[Cell]) -> None:
    """comparisons.json: each checkpoint of a protocol against the first."""
    rows = [cell.read() for cell in cells]
    compared = [
        {
            "first": cells[0].progress.checkpoint,
            "second": cell.progress.checkpoint,
            **compare(rows[0], theirs),
        }
        for cell, theirs in zip(cells[1:], rows[1:], strict=True)
    ]
    write_json(folder / COMPARISONS, {"comparisons": compared})


def results_of(folder: Path) -> ProtocolResults:
    """The finished cells in a protocol's folder, and their comparisons."""
    path = folder / COMPARISONS
    return ProtocolResults(
        protocol=read_json(folder / PROTOCOL),
        cells=[cell.progress for cell in done_cells(folder)],
        comparisons=read_json(path, missing_ok=True).get("comparisons", []),
    )


def update_results(results: Path, folder: Path) -> None:
    """Write results.json, results.md and the protocol's trace page anew.

    Args:
        results: the folder of the grid.
        folder: of the protocol whose cells changed.
    """
    with locked(results / ".lock"):
        cells = done_cells(folder)
        compare_cells(folder, cells)
        found = [results_of(path) for path in (results / CELLS).iterdir()]
        found = sorted((group for group in found if group.cells), key=in_order)
        write_json(results / "results.json", [as_json(group) for group in found])
        write_text(results / "results.md", markdown(found))
        write_page(results / "traces" / f"{folder.name}.html", folder, cells)


def in_order(group: ProtocolResults) -> tuple[object, ...]:
    """Tasks by name, their lengths and steps by size."""
    content, decoding = group.protocol, group.protocol["decoding"]
    return content["task"], decoding["gen_length"], decoding["steps"], digest(content)


def write_page(path: Path, folder: Path, cells: list[Cell]) -> None:
    """The trace page of a protocol: the first problems, as every checkpoint completed them."""
    names = short_names([cell.progress.checkpoint for cell in cells])
    rows = [
        replace(row, source=name)
        for name, cell in zip(names, cells, strict=True)
        for row in cell.read_trace()
    ]
    if rows:
        with survives_a_full_disk(path):
            path.parent.mkdir(exist_ok=True)
            write_trace(path, rows, title=title(read_json(folder / PROTOCOL)))


def short_names(names: list[str]) -> list[str]:
    """Paths without the folders that all of them are in."""
    if len(names) < 2 or len({Path(name).is_absolute() for name in names}) > 1:
        return names
    common = os.path.commonpath(names)
    if common in ("", *map(os.path.normpath, names)):
        return names
    return [os.path.relpath(name, common) for name in names]


def title(content: dict[str, Any]) -> str:
    """Of a trace page: `countdown, test split, canvas 16, 16 steps, temperature 0`"""
    decoding = content["decoding"]
    return (
        f"{content['task']}, {content['split']} split, canvas {decoding['gen_length']}, "
        f"{decoding['steps']} steps, temperature {decoding['temperature']:g}"
    )


def as_json(group: ProtocolResults) -> dict[str, Any]:
    return {
        "protocol": group.protocol,
        "cells": [
            {
                "checkpoint": cell.checkpoint,
                "path": cell.path,
                "dropped": cell.dropped,
                "stop_tokens": cell.stop_tokens,
                "first_prompt": cell.first_prompt,
                **(cell.summary or {}),
            }
            for cell in group.cells
        ],
        "comparisons": group.comparisons,
    }


# ---- the table


def with_interval(value: float, ci95: Iterable[float]) -> str:
    low, high = ci95
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


PLACE = ["task", "canvas", "steps", "protocol"]
COSTS = ["n", "NFE", "tokens/s", "truncated"]
PAIR = ["against", "checkpoint", "difference", "gained", "lost", "p"]


def place(group: ProtocolResults) -> list[str]:
    decoding = group.protocol["decoding"]
    size = [str(decoding["gen_length"]), str(decoding["steps"])]
    return [group.protocol["task"], *size, digest(group.protocol)]


def shown_ks(samples: int, every_k: bool) -> list[int]:
    return powers(samples) if every_k else powers(samples)[-1:]


def header(samples: int, *, every_k: bool = True) -> list[str]:
    """Columns of a cell; without `every_k` of pass@k the largest k alone."""
    several = [f"pass@{k}" for k in shown_ks(samples, every_k)]
    several += [f"majority@{samples}"] if samples > 1 else []
    return ["checkpoint", "pass@1", *several, *COSTS]


def line(name: str, found: dict[str, Any], *, every_k: bool = True) -> list[str]:
    """A cell's summary under `header`."""
    several = [found["pass_at"][str(k)] for k in shown_ks(found["samples"], every_k)]
    several += [found["majority"]] if found["samples"] > 1 else []
    entries = [{"value": found["accuracy"], "ci95": found["ci95"]}, *several]
    return [
        name,
        *(with_interval(entry["value"], entry["ci95"]) for entry in entries),
        str(found["n"]),
        f"{found['nfe_mean']:.1f}",
        f"{found['tokens_per_s']:.0f}",
        f"{found['truncated_frac']:.3f}",
    ]


def pair_line(pair: dict[str, Any], short: dict[str, str]) -> list[str]:
    """A comparison under PAIR: problems gained and lost, and p of McNemar's exact test."""
    low, high = pair["ci95"]
    change = f"{pair['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
    counts = ["", "", ""]
    if "p" in pair:
        counts = [str(pair["only_second"]), str(pair["only_first"]), f"{pair['p']:.2g}"]
    return [short[pair["first"]], short[pair["second"]], change, *counts]


def compared(group: ProtocolResults) -> list[dict[str, Any]]:
    return [pair for pair in group.comparisons if pair["n"]]


def same_names(group: ProtocolResults) -> dict[str, str]:
    return {cell.checkpoint: cell.checkpoint for cell in group.cells}


def markdown(found: list[ProtocolResults]) -> str:
    """results.md: a table for each number of samples, since their columns differ."""
    parts = ["# Evaluation", "", "Intervals are 95 %."]
    samples = lambda group: group.protocol["samples"]
    for count, same in groupby(sorted(found, key=samples), key=samples):
        cells = [(group, cell) for group in same for cell in group.cells]
        lines = [[*place(group), *line(c.checkpoint, c.summary or {})] for group, c in cells]
        parts += ["", *grid([*PLACE, *header(count)], lines)]
    lines = [
        [*place(group), *pair_line(pair, same_names(group))]
        for group in found
        for pair in compared(group)
    ]
    if lines:
        parts += ["", "## Paired comparison", "", *grid([*PLACE, *PAIR], lines)]
    parts += ["", "## Protocols"]
    for group in found:
        parts += ["", *described(group)]
    return "\n".join(parts) + "\n"


def grid(head: list[str], lines: list[list[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *lines]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def described(group: ProtocolResults) -> list[str]:
    """What a protocol fixes, as a list."""
    content, first = group.protocol, group.cells[0]
    decoding = ", ".join(f"{k}={v}" for k, v in content["decoding"].items() if v is not None)
    return [
        f"- {digest(content)}: {content['task']}, {content['split']} split, "
        f"{content['problems']['n']} problems (SHA-256 {content['problems']['sha256'][:12]}), "
        f"samples={content['samples']}, seed={content['seed']}, {content['dtype']}",
        f"  - prompt: `{content['prompt']!r}`, system {content['system']!r}; as the first "
        f"checkpoint sees the first problem: `{first.first_prompt!r}`",
        f"  - decoding: {decoding}",
        f"  - end: {content['end_rule']}; stop tokens {', '.join(first.stop_tokens or [])}",
        f"  - grader: {content['grader']}, {content['grading']}",
        *(
            f"  - {cell.checkpoint}: {cell.dropped} problems are longer than its positions"
            for cell in group.cells
            if cell.dropped
        ),
    ]
