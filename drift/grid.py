"""The numbers of an evaluation grid: of each cell, of pairs of checkpoints, and the table of all.

`results.json` and `results.md` in the results folder are computed from the cells that are there,
whichever process wrote them: jobs of a sweep that run at the same time share one table.
"""

import fcntl
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from drift.cells import CELL, Cell, Progress
from drift.evaluation import Completion
from drift.files import write_json
from drift.policy.loading import read_json
from drift.report import survives_a_full_disk
from drift.stats import bootstrap, mcnemar, pass_at_k, wilson
from drift.viewer import write_trace

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
class Group:
    """The finished cells of one protocol, in the order of the command's checkpoints."""

    protocol: dict[str, Any]
    cells: list[Progress]
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


def groups(results: Path) -> list[Group]:
    found: list[Group] = []
    for folder in sorted((results / CELLS).iterdir()):
        cells = [cell.progress for cell in done_cells(folder)]
        if cells:
            content = read_json(folder / PROTOCOL)
            comparisons = read_json(folder / COMPARISONS)["comparisons"]
            found.append(Group(protocol=content, cells=cells, comparisons=comparisons))
    return found


def update_results(results: Path, folder: Path) -> list[Group]:
    """Write results.json, results.md and the protocol's trace page anew.

    Args:
        results: the folder of the grid.
        folder: of the protocol whose cells changed.
    """
    with (results / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cells = done_cells(folder)
        compare_cells(folder, cells)
        found = groups(results)
        write_json(results / "results.json", [as_json(group) for group in found])
        (results / "results.md").write_text(markdown(found), encoding="utf-8")
        names = short_names([cell.progress.checkpoint for cell in cells])
        rows = [
            replace(row, source=name)
            for name, cell in zip(names, cells, strict=True)
            for row in cell.read_trace()
        ]
        page = results / "traces" / f"{folder.name}.html"
        if rows:
            with survives_a_full_disk(page):
                page.parent.mkdir(exist_ok=True)
                write_trace(page, rows, title=title(read_json(folder / PROTOCOL)))
    return found


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


def as_json(group: Group) -> dict[str, Any]:
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


def header(samples: int) -> list[str]:
    several = [f"pass@{k}" for k in powers(samples)] + [f"majority@{samples}"]
    return [
        "task", "canvas", "steps", "checkpoint", "pass@1", *(several if samples > 1 else []), "n",
        "NFE", "tokens/s", "truncated",
    ]  # fmt: skip


def line(group: Group, cell: Progress) -> list[str]:
    found, decoding = cell.summary or {}, group.protocol["decoding"]
    several = [*found.get("pass_at", {}).values(), *filter(None, [found.get("majority")])]
    return [
        group.protocol["task"],
        str(decoding["gen_length"]),
        str(decoding["steps"]),
        cell.checkpoint,
        with_interval(found["accuracy"], found["ci95"]),
        *(with_interval(entry["value"], entry["ci95"]) for entry in several),
        str(found["n"]),
        f"{found['nfe_mean']:.1f}",
        f"{found['tokens_per_s']:.0f}",
        f"{found['truncated_frac']:.3f}",
    ]


def tables(found: list[Group]) -> list[tuple[list[str], list[list[str]]]]:
    """Header and lines: a table for each number of samples, since their columns differ."""
    samples = lambda group: group.protocol["samples"]
    ordered = sorted(found, key=samples)
    return [
        (header(count), [line(group, cell) for group in same for cell in group.cells])
        for count, same in groupby(ordered, key=samples)
    ]


PAIRS = ["task", "canvas", "steps", "against", "checkpoint", "difference", "gained", "lost", "p"]


def pairs(found: list[Group]) -> list[list[str]]:
    """Lines of the paired comparison: problems gained and lost, p of McNemar's exact test."""
    lines: list[list[str]] = []
    for group in found:
        decoding = group.protocol["decoding"]
        place = [group.protocol["task"], str(decoding["gen_length"]), str(decoding["steps"])]
        for pair in group.comparisons:
            if not pair["n"]:
                continue
            low, high = pair["ci95"]
            counts = ["", "", ""]
            if "p" in pair:
                counts = [str(pair["only_second"]), str(pair["only_first"]), f"{pair['p']:.2g}"]
            change = f"{pair['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
            lines.append([*place, pair["first"], pair["second"], change, *counts])
    return lines


def markdown(found: list[Group]) -> str:
    """results.md"""
    parts = ["# Evaluation", "", "Intervals are 95 %."]
    for head, lines in tables(found):
        parts += ["", *grid(head, lines)]
    if compared := pairs(found):
        parts += ["", "## Paired comparison", "", *grid(PAIRS, compared)]
    parts += ["", "## Protocols"]
    for group in found:
        parts += ["", *described(group)]
    return "\n".join(parts) + "\n"


def grid(head: list[str], lines: list[list[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *lines]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def described(group: Group) -> list[str]:
    """What a protocol fixes, as a list."""
    content, first = group.protocol, group.cells[0]
    decoding = ", ".join(f"{k}={v}" for k, v in content["decoding"].items() if v is not None)
    return [
        f"- {content['task']}, {content['split']} split: {content['problems']['n']} problems "
        f"(SHA-256 {content['problems']['sha256'][:12]}), {content['samples']} samples each, "
        f"seed {content['seed']}, {content['dtype']}",
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
