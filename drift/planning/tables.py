"""The tables of `drift.plan`: memory of a GPU, traffic and arithmetic of a step.

Computed from the composed config of drift.train and the checkpoint's sizes; no weights are read.
Formulas: memory.py and cost.py, with N weights, T trained, w bytes of model.dtype, R ranks, L
layers, D width, S tokens of a row. Times take the given rates and no overlap.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hydra import compose
from hydra.core.hydra_config import HydraConfig

from drift.common.errors import ConfigError
from drift.common.files import read_json
from drift.config.checks import refused_share, validate
from drift.config.commands import PlanConfig, RunConfig
from drift.config.compose import typed
from drift.config.model import ModelConfig
from drift.planning import cost, memory
from drift.planning.memory import GIB, Sizes, Terms
from drift.planning.shapes import HUB, SHAPES
from drift.policy.backbone import BackboneConfig
from drift.policy.loading import FAMILIES, find_checkpoint


def backbone_of(model: ModelConfig) -> BackboneConfig:
    """Of a published checkpoint from the table, of a folder from its config.json."""
    if model.path in HUB:
        return SHAPES[HUB[model.path]][1]
    folder = find_checkpoint(model.path, model.revision)
    return FAMILIES[model.family].read_config(read_json(folder / "config.json"))


@dataclass(frozen=True, slots=True)
class Plan:
    """A config and what follows from it."""

    config: RunConfig
    sizes: Sizes

    @classmethod
    def of(cls, config: PlanConfig) -> "Plan":
        """Raises ConfigError where the ranks cannot have equal parts of the prompts."""
        split = memory.sharding_of(config.cluster)
        prompts = config.rollout.prompts_per_step
        if reason := refused_share("rollout.prompts_per_step", prompts, split.ranks):
            raise ConfigError(reason)
        row = config.plan.prompt_length + config.rollout.gen_length
        backbone = backbone_of(config.model)
        return cls(config, Sizes(model=config.model, backbone=backbone, row=row, split=split))

    def moments(self) -> dict[str, Terms]:
        """Memory of a GPU in each part of a step; no more rows than it has."""
        config, objective = self.config, self.config.objective
        rows = cost.rows_of_rank(config, self.sizes.split.ranks)
        rollout = replace(config.rollout, max_rows=min(rows, config.rollout.max_rows))
        tokens = rows * cost.num_views(config) * self.sizes.row
        most = min(tokens, config.optim.tokens_per_forward)
        optim = replace(config.optim, tokens_per_forward=most)
        return {
            "rollout": memory.decoding(self.sizes, objective, rollout),
            "backward": memory.training(self.sizes, objective, optim, rollout),
            "AdamW": memory.updating(self.sizes, objective, rollout),
        }

    def tflop(self) -> dict[str, float]:
        """TFLOP of a GPU in one step."""
        b, row = self.sizes.backbone, self.sizes.row
        rows = cost.rows_of_rank(self.config, self.sizes.split.ranks)
        rollout = cost.rollout_flops(b, self.config.rollout, row)
        learner = cost.learner_flops(b, self.config, row)
        return {"rollout": rows * rollout / 1e12, "learner": rows * learner / 1e12}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown, aligned: words to the left, numbers to the right."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    is_number = [not "".join(column[1:]).replace(".", "").strip("0123456789") for column in columns]

    def line(cells: Iterable[str]) -> str:
        found = zip(cells, widths, is_number, strict=True)
        return f"| {' | '.join(c.rjust(w) if right else c.ljust(w) for c, w, right in found)} |"

    marks = [f"{'-' * (w + 1)}{':' if n else '-'}" for w, n in zip(widths, is_number, strict=True)]
    return "\n".join([line(head), f"|{'|'.join(marks)}|", *map(line, rows)])


def memory_table(plan: Plan, available: float) -> str:
    moments = plan.moments()
    names = list(dict.fromkeys(name for terms in moments.values() for name in terms))
    rows: list[list[str]] = []
    for name in names:
        said = {t.formulas[name]: moment for moment, t in moments.items() if name in t}
        formula = "; ".join(
            f"{text} ({moment})" if len(said) > 1 else text for text, moment in said.items()
        )
        cells = [f"{t[name] / GIB:.2f}" if name in t else "" for t in moments.values()]
        rows.append([name, *cells, formula])
    rows.append(
        ["sum", *[f"{t.total / GIB:.1f}" for t in moments.values()], f"of {available:g} GiB"]
    )
    return table(["GiB of a GPU", *moments, "formula"], rows)


def traffic_table(plan: Plan, gb_per_s: float) -> str:
    terms = cost.traffic(plan.sizes, plan.config)
    rows = [
        [name, f"{size / 1e9:.1f}", f"{size / 1e9 / gb_per_s:.1f}", terms.formulas[name]]
        for name, size in terms.items()
    ]
    rows.append(["sum", f"{terms.total / 1e9:.1f}", f"{terms.total / 1e9 / gb_per_s:.1f}", ""])
    return table(["sent by a GPU in a step", "GB", "s", "formula"], rows)


def work_table(plan: Plan, flops: float) -> str:
    config, rows = plan.config, cost.rows_of_rank(plan.config, plan.sizes.split.ranks)
    said = {
        "rollout": f"{rows} completions, {config.rollout.steps} steps",
        "learner": f"{rows} completions, {cost.num_views(config)} views",
    }
    found = [
        [name, f"{work:.0f}", f"{work * 1e12 / flops:.1f}", said[name]]
        for name, work in plan.tflop().items()
    ]
    return table(["arithmetic of a GPU in a step", "TFLOP", "s", "of"], found)


def over_table(key: str, plans: dict[str, Plan], flops: float, gb_per_s: float) -> str:
    rows: list[list[str]] = []
    for value, plan in plans.items():
        moments, work = plan.moments(), plan.tflop()
        fullest = max(moments, key=lambda moment: moments[moment].total)
        sent = cost.traffic(plan.sizes, plan.config).total / 1e9
        times = [work[name] * 1e12 / flops for name in ("rollout", "learner")]
        times.append(sent / gb_per_s)
        rows.append(
            [
                value,
                str(plan.sizes.split.ranks),
                f"{moments[fullest].total / GIB:.1f} ({fullest})",
                f"{work['rollout']:.0f}",
                f"{work['learner']:.0f}",
                f"{sent:.0f}",
                *[f"{time:.1f}" for time in times],
                f"{sum(times):.0f}",
            ]
        )
    head = [key, "ranks", "most GiB of a GPU", "rollout TFLOP", "learner TFLOP", "GB sent"]
    return table([*head, "rollout s", "learner s", "traffic s", "sum s"], rows)


def run(config: PlanConfig) -> None:
    """Print what the config needs, or a line for each value of `plan.over`."""
    settings = config.plan
    if settings.over is not None:
        given = HydraConfig.get().overrides.task
        plans: dict[str, Plan] = {}
        for value in settings.values:
            changed: PlanConfig = typed(compose("plan", [*given, f"{settings.over}={value}"]))
            validate(changed)
            plans[value] = Plan.of(changed)
        print(over_table(settings.over, plans, settings.flops, settings.gb_per_s))
        return
    plan = Plan.of(config)
    sizes = plan.sizes
    weights = memory.num_parameters(sizes.backbone)
    trained = memory.num_trained(sizes.model, sizes.backbone)
    print(
        f"{sizes.model.name}: N = {weights / 1e9:.2f} 10^9 weights, T = {trained / 1e9:.3f} 10^9 "
        f"trained; {sizes.split.ranks} ranks, ZeRO stage {sizes.split.stage}; rows of "
        f"{sizes.row} tokens; {settings.flops:.3g} FLOP/s and {settings.gb_per_s:g} GB/s a GPU\n"
    )
    print(memory_table(plan, settings.gpu_gib) + "\n")
    print(traffic_table(plan, settings.gb_per_s) + "\n")
    print(work_table(plan, settings.flops))
