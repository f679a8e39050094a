"""The lab's tables: every masking and objective measured against what can be counted."""

import itertools
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drift.common import rng, terminal
from drift.common.errors import ConfigError
from drift.common.files import write_json
from drift.config.checks import masking_problems, objective_problems, setting
from drift.config.commands import LabConfig, RunConfig
from drift.config.masking import (
    AllConfig,
    BlockConfig,
    CoupledConfig,
    CoupledRatioConfig,
    ElboConfig,
    LeftToRightConfig,
    MaskingConfig,
    QuadratureConfig,
    RandomConfig,
    ReplayConfig,
    SequentialConfig,
    Tail,
    Times,
    TraceConfig,
)
from drift.config.objective import (
    AdvantageEstimator,
    BoundaryConfig,
    Level,
    Normalization,
    ObjectiveConfig,
    PpoClipConfig,
    ReinforceConfig,
    SandwichConfig,
    SelfNormalizedConfig,
)
from drift.config.rollout import ROLLOUTS
from drift.toy.estimates import measure_masking, measure_objective
from drift.toy.model import lagging, make_toy, space_of, table
from drift.toy.truth import Truth, count

log = logging.getLogger("drift")

MAX_DRAWS = 20_000  # joint draws of one state
MAX_STATES = 4096  # whose gradients are kept: about 250 MiB for each thousand
UNCOUNTED = {
    "top_p": None,
    "top_k": None,
    "position_temperature": 0.0,
    "confidence_from": "network",
    "schedule": "equal",
    "suppress_end": "none",
    "cache": "none",
}
BUDGETS = (1, 2, 4, 8)  # forwards of one completion
BEGIN, END = "<!-- made by python -m drift.lab: begin -->", "<!-- end -->"


def basic_maskings() -> dict[str, list[MaskingConfig]]:
    """The four maskings of the field at each budget they can have."""
    return {
        "sequential": [SequentialConfig(num_views=k) for k in BUDGETS],
        "sequential, uniform steps, no candidates": [
            SequentialConfig(num_views=k, temperature=float("inf"), low_prob_threshold=1.0)
            for k in BUDGETS
        ],
        "random": [RandomConfig(num_views=k) for k in BUDGETS],
        "coupled": [CoupledConfig(num_views=k) for k in BUDGETS[1:]],
        "all": [AllConfig()],
        "all, 15 % of the prompt": [AllConfig(prompt_mask_prob=0.15, num_views=k) for k in BUDGETS],
    }


def without_tail() -> dict[str, list[MaskingConfig]]:
    """Maskings that do not score what follows the first stop token."""
    return {
        "replay, tail excluded": [ReplayConfig(tail=Tail.exclude)],
        "sequential, tail excluded": [
            SequentialConfig(num_views=k, tail=Tail.exclude) for k in BUDGETS
        ],
    }


def other_maskings(gen_length: int) -> dict[str, list[MaskingConfig]]:
    """The others; replay, trace and left_to_right have no budget to choose."""
    pairs = BUDGETS[1:]
    half = 1 if gen_length % 2 else gen_length // 2  # of a single block it would be an elbo
    return {
        "replay": [ReplayConfig()],
        "trace, groups of 2": [TraceConfig(shrink=2)],
        "left_to_right": [LeftToRightConfig()],
        "elbo, independent": [ElboConfig(num_views=k, times=Times.independent) for k in BUDGETS],
        "elbo, stratified": [ElboConfig(num_views=k) for k in BUDGETS],
        "elbo, stratified, exact count": [
            ElboConfig(num_views=k, exact_count=True) for k in BUDGETS
        ],
        "elbo, antithetic, exact count": [
            ElboConfig(num_views=k, times=Times.antithetic, exact_count=True) for k in pairs
        ],
        "quadrature": [QuadratureConfig(num_views=k) for k in BUDGETS],
        f"block, length {half}": [BlockConfig(num_views=k, block_length=half) for k in BUDGETS],
        "coupled_ratio": [CoupledRatioConfig(num_views=k) for k in (3, 6)],
    }


def objectives() -> dict[str, ObjectiveConfig]:
    """One of each loss, with the advantage of leave-one-out, which is unbiased, and two others."""
    total = Normalization.sequence
    unbiased: dict[str, Any] = {
        "advantage": AdvantageEstimator.leave_one_out,
        "normalization": total,
    }
    return {
        "reinforce": ReinforceConfig(**unbiased),
        "reinforce, A / std": ReinforceConfig(normalization=total),
        "reinforce, softmax": ReinforceConfig(
            advantage=AdvantageEstimator.softmax, normalization=total
        ),
        "ppo_clip, view": PpoClipConfig(**unbiased),
        "ppo_clip, token": PpoClipConfig(**unbiased, level=Level.token),
        "ppo_clip, sequence": PpoClipConfig(**unbiased, level=Level.sequence),
        "sandwich": SandwichConfig(**unbiased),
        # unclipped: the bound alone
        "boundary": BoundaryConfig(**unbiased, clip_low=0.999, clip_high=1e6),
        "self_normalized": SelfNormalizedConfig(advantage=unbiased["advantage"]),
    }


def others(config: LabConfig, gen_length: int) -> dict[str, list[MaskingConfig]]:
    """The rows of the second table; where the reward ends at the stop token, the tail's too."""
    return other_maskings(gen_length) | (without_tail() if config.toy.until_stop else {})


def table_maskings(gen_length: int) -> dict[str, MaskingConfig]:
    """One of each masking, at 4 forwards where it can be chosen, for the table of objectives."""
    basic, other = basic_maskings(), other_maskings(gen_length)
    chosen = {
        name: (basic | other)[name]
        for name in ("sequential", "random", "coupled", "all", *other)
        if name not in ("elbo, independent", "elbo, stratified")
    }
    return {name: configs[min(2, len(configs) - 1)] for name, configs in chosen.items()}


def check(config: LabConfig) -> None:
    """Refuse what the lab does not count, before anything is done.

    Raises:
        ConfigError: one line.
    """
    rollout, toy = config.rollout, config.toy
    draws = toy.num_words**rollout.block_length
    if toy.num_words < 2 or draws > MAX_DRAWS:
        raise ConfigError(
            f"toy.num_words={toy.num_words} with rollout.block_length={rollout.block_length} are "
            f"{draws} joint draws of a block; use 2 or more words and at most {MAX_DRAWS} draws"
        )
    states = (toy.num_words + 1) ** rollout.gen_length * 2**toy.prompt_length
    if states > MAX_STATES:
        raise ConfigError(
            f"toy.num_words={toy.num_words}, rollout.gen_length={rollout.gen_length} and "
            f"toy.prompt_length={toy.prompt_length} make {states} states; at most {MAX_STATES} "
            "are counted: lower one of them"
        )
    if config.draws % 2:
        raise ConfigError(f"draws={config.draws} must be even")
    whole = RunConfig(masking=AllConfig(), objective=ReinforceConfig(), rollout=rollout)
    for problem in objective_problems(whole):  # of the rollout: the objective is the default
        raise ConfigError(problem)
    for name, off in UNCOUNTED.items():
        value = rollout.cache_for(0) if name == "cache" else setting(rollout, name)
        if value not in (off, None):
            known = "null" if off is None else off
            raise ConfigError(f"rollout.{name}={value} is not counted by the lab; leave it {known}")
    if config.page is not None:
        page_parts(Path(config.page))


def num_estimates(config: LabConfig) -> int:
    """How often `measure_toy` calls `advance`."""
    length = config.rollout.gen_length
    every = [*basic_maskings().values(), *others(config, length).values()]
    return sum(map(len, every)) + len({0.0, config.lag}) * len(table_maskings(length))


def measure_toy(config: LabConfig, number: int, advance: Callable[[], object]) -> dict[str, Any]:
    """Everything about one random network; calls `advance` after each masking."""
    length = config.rollout.gen_length
    space = space_of(config.toy, length)
    policy = make_toy(config.toy, length, config.seed + number)
    truth = count(policy, space, config.rollout, 2**config.toy.prompt_length, policy)
    key = rng.stream(config.seed, "toy", number)
    found: dict[str, Any] = {"toy": facts(truth)}

    def measured(masking: MaskingConfig) -> dict[str, Any]:
        report = asdict(measure_masking(truth, masking, config.draws, key))
        advance()
        return report

    tables = {"basic": basic_maskings(), "other": others(config, length)}
    for part, maskings in tables.items():
        found[part] = {name: list(map(measured, configs)) for name, configs in maskings.items()}
    for lag in (0.0, config.lag):
        found[f"objectives, lag {lag:g}"] = measure_objectives(config, number, lag, advance)
    return found


def facts(truth: Truth) -> dict[str, float]:
    """What the toy is like."""
    exact = truth.product(truth.exact_E, truth.exact_E) ** 0.5
    trace = truth.product(truth.trace_E, truth.trace_E) ** 0.5
    return {
        "trajectories": float(len(truth.prob_B)),
        "mean_reward": truth.mean_reward,
        "entropy": -float((truth.prob_B * truth.loglik_B).sum()),
        "trace_cosine": truth.product(truth.exact_E, truth.trace_E) / (exact * trace),
        "trace_norm": trace / exact,
    }


def measure_objectives(
    config: LabConfig, number: int, lag: float, advance: Callable[[], object]
) -> dict[str, Any]:
    """Each masking with each objective, by a policy that is `lag` away from the sampler."""
    rollout, seed = config.rollout, config.seed + number
    space = space_of(config.toy, rollout.gen_length)
    policy, sampler = (make_toy(config.toy, rollout.gen_length, seed) for _ in range(2))
    lagging(policy, lag, seed + 1)
    truth = count(policy, space, rollout, 1, sampler)
    old = table(sampler, space, rollout.temperature)
    key = rng.stream(config.seed, "objectives", number)
    found: dict[str, Any] = {}
    for masking_name, masking in table_maskings(rollout.gen_length).items():
        row: dict[str, Any] = {}
        for name, objective in objectives().items():
            whole = RunConfig(masking=masking, objective=objective, rollout=rollout)
            if any(masking_problems(whole)) or any(objective_problems(whole)):
                continue
            report = measure_objective(
                truth, old, masking, objective, rollout.group_size, config.groups, key
            )
            row[name] = asdict(report)
        found[masking_name] = row
        advance()
    return found


def averaged(found: list[Any]) -> Any:
    """The mean over toys of every number, whatever it is nested in."""
    first = found[0]
    if isinstance(first, dict):
        return {name: averaged([one[name] for one in found]) for name in first}
    if isinstance(first, list):
        return [averaged(list(ones)) for ones in zip(*found, strict=True)]
    return sum(found) / len(found)


def masking_table(rows: dict[str, list[dict[str, float]]]) -> str:
    """One line for each masking and budget."""
    lines = [
        "| masking | forwards | log p: bias, nats | rms of the bias | std | gradient: bias "
        "| against the sampler's | cosine | norm | std | of it the masks' |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, reports in rows.items():
        for r in reports:
            lines.append(
                f"| {name} | {r['forwards']:.1f} | {r['loglik_bias']:+.2f} | {r['loglik_rms']:.2f} "
                f"| {r['loglik_std']:.2f} | {r['bias']:.2f} ± {r['bias_se']:.2f} "
                f"| {r['trace_bias']:.2f} | {r['cosine']:.2f} | {r['norm']:.2f} | {r['std']:.1f} "
                f"| {r['masking_std']:.1f} |"
            )
    return "\n".join(lines)


def objective_table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """A line for each masking, a column for each objective: cosine / norm / std of a group."""
    names = list(objectives())
    lines = ["| masking | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for masking, reports in rows.items():
        cells = [
            "{cosine:.2f} / {norm:.1f} / {std:.1f}".format(**reports[name])
            if name in reports
            else ""
            for name in names
        ]
        lines.append(f"| {masking} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(config: LabConfig, mean: dict[str, Any]) -> str:
    """The tables of a page."""
    toy, rollout = mean["toy"], config.rollout
    words, steps, length = config.toy.num_words, config.toy.fit_steps, rollout.gen_length
    kind = f"fitted for {steps} steps" if steps else "of random weights"
    parts = [
        f"{config.toys} networks, {kind}, {words} words, {length} tokens in blocks of "
        f"{rollout.block_length}, {rollout.steps} steps, `rollout={ROLLOUTS.name(rollout)}`, "
        f"`rollout.confidence={rollout.confidence}`, temperature {rollout.temperature:g}; "
        f"{config.draws} draws of masks for each trajectory. Means over the networks: "
        f"{toy['trajectories']:.0f} trajectories, E[R] = {toy['mean_reward']:.2f}, entropy of the "
        f"answer {toy['entropy']:.2f} nats. The sampler's own gradient has cosine "
        f"{toy['trace_cosine']:.2f} and norm {toy['trace_norm']:.2f} against the exact one.",
        "### The four maskings",
        masking_table(mean["basic"]),
        "![bias and noise against forwards](lab.png)",
        "### The others",
        masking_table(mean["other"]),
    ]
    for name, rows in mean.items():
        if name.startswith("objectives"):
            parts += [f"### Masking x {name}", objective_table(rows)]
    return "\n\n".join(parts)


def plot(mean: dict[str, Any], path: Path) -> None:
    """Bias and the masks' noise of the gradient against forwards, log-log."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    colors, number = pyplot.get_cmap("tab20"), itertools.count()
    for part, style in (("basic", "o-"), ("other", "s--")):
        for name, reports in mean[part].items():
            forwards, color = [r["forwards"] for r in reports], colors(next(number))
            for axis, key in zip(axes, ("bias", "masking_std"), strict=True):
                values = [r[key] for r in reports]
                axis.plot(forwards, values, style, ms=5, color=color, label=name)
    titles = ("bias of the gradient", "standard deviation that the masks add")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xlabel="forwards of one completion", title=f"{title}, / |exact gradient|")
        axis.set_xscale("log", base=2)
        axis.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def page_parts(page: Path) -> tuple[str, str]:
    """What stands before and behind the part of a page that the lab makes.

    Raises:
        ConfigError: the page or its marks are missing.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ConfigError(f"page={page}: no such page, or it lacks the lines {BEGIN} and {END}")
    return before, after


def write_page(page: Path, tables: str) -> None:
    """Replace the part of a page between its marks."""
    before, after = page_parts(page)
    page.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}", encoding="utf-8")


def run(config: LabConfig) -> None:
    """Measure, write, print where."""
    check(config)
    folder = Path(config.output_dir)
    found: list[dict[str, Any]] = []
    with terminal.bar("estimates", config.toys * num_estimates(config)) as bar:
        for number in range(config.toys):
            found.append(measure_toy(config, number, bar.advance))
            log.info("network %d of %d is measured", number + 1, config.toys)
    mean = averaged(found)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "lab.json", {"mean": mean, "networks": found})
    tables = report(config, mean)
    (folder / "lab.md").write_text(tables + "\n", encoding="utf-8")
    plot(mean, folder / "lab.png")
    if config.page is not None:
        page = Path(config.page)
        write_page(page, tables)
        plot(mean, page.with_suffix(".png"))
    log.info("wrote %s", folder / "lab.md")
