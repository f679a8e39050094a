"""What a run needs before it costs anything: memory of a GPU, traffic and arithmetic of a step.

python scripts/plan.py experiment=llada_math cluster=slurm cluster.num_processes=8
python scripts/plan.py experiment=llada_math cluster.num_processes=8 --over cluster.num_machines=1,8

Computed from the composed config of drift.train and the checkpoint's sizes; no weights are read.
Formulas: drift/planning, memory.py and cost.py, with N weights, T trained, w bytes of model.dtype,
R ranks, L layers, D width, S tokens of a row. Times take the given rates and no overlap.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from hydra import compose, initialize_config_dir
from shapes import HUB, SHAPES

from drift.common.errors import ConfigError
from drift.config import ModelConfig, RunConfig, register
from drift.config.checks import validate
from drift.config.compose import CONF, typed
from drift.config.explain import USER_ERRORS, explain
from drift.planning import cost, memory
from drift.planning.memory import GIB, Sizes, Terms
from drift.policy.backbone import BackboneConfig
from drift.policy.loading import FAMILIES, find_checkpoint, read_json


def backbone_of(model: ModelConfig) -> BackboneConfig:
    """Of a published checkpoint from the table, of a folder from its config.json."""
    if model.path in HUB:
        return SHAPES[HUB[model.path]][1]
    folder = find_checkpoint(model.path, model.revision)
    return FAMILIES[model.family.value].read_config(read_json(folder / "config.json"))


def composed(overrides: Iterable[str]) -> RunConfig:
    config: RunConfig = typed(compose("train", overrides=list(overrides)))
    validate(config)
    return config


@dataclass(frozen=True, slots=True)
class Plan:
    """A config and what follows from it."""

    config: RunConfig
    sizes: Sizes

    @classmethod
    def of(cls, overrides: list[str], prompt: int) -> "Plan":
        config = composed(overrides)
        split = memory.split_of(config.cluster)
        if config.rollout.prompts_per_step % split.ranks:
            raise ConfigError(
                f"rollout.prompts_per_step={config.rollout.prompts_per_step} cannot be shared by "
                f"{split.ranks} ranks alike; use a multiple of {split.ranks}"
            )
        row = prompt + config.rollout.gen_length
        backbone = backbone_of(config.model)
        return cls(config, Sizes(model=config.model, backbone=backbone, row=row, split=split))

    def moments(self) -> dict[str, Terms]:
        """Memory of a GPU in each part of a step; no more rows than it has."""
        config, objective = self.config, self.config.objective
        rows = cost.rows_of_rank(config, self.sizes.split.ranks)
        rollout = replace(config.rollout, max_rows=min(rows, config.rollout.max_rows))
        views = rows * cost.num_views(config)
        optim = replace(config.optim, rows_per_forward=min(views, config.optim.rows_per_forward))
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
        rows.append([
            value, str(plan.sizes.split.ranks), f"{moments[fullest].total / GIB:.1f} ({fullest})",
            f"{work['rollout']:.0f}", f"{work['learner']:.0f}", f"{sent:.0f}",
            *[f"{time:.1f}" for time in times], f"{sum(times):.0f}",
        ])  # fmt: skip
    head = [key, "ranks", "most GiB of a GPU", "rollout TFLOP", "learner TFLOP", "GB sent"]
    return table([*head, "rollout s", "learner s", "traffic s", "sum s"], rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="of drift.train")
    parser.add_argument("--over", metavar="KEY=V1,V2", help="one line for each value")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the longest prompt")
    parser.add_argument("--flops", type=float, default=4e14, help="FLOP/s that a GPU reaches")
    parser.add_argument("--gb-per-s", type=float, default=50.0, help="that a GPU sends")
    parser.add_argument("--gpu-gib", type=float, default=80.0, help="memory of a GPU")
    return parser.parse_intermixed_args()


def main() -> None:
    options = arguments()
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        if options.over:
            key, _, values = options.over.partition("=")
            if not values:
                raise ConfigError(f"--over={key} must be KEY=V1,V2")
            plans = {
                value: Plan.of([*options.overrides, f"{key}={value}"], options.prompt)
                for value in values.split(",")
            }
            print(over_table(key, plans, options.flops, options.gb_per_s))
            return
        plan = Plan.of(options.overrides, options.prompt)
    sizes = plan.sizes
    weights = memory.num_parameters(sizes.backbone)
    trained = memory.num_trained(sizes.model, sizes.backbone)
    print(
        f"{sizes.model.name}: N = {weights / 1e9:.2f} 10^9 weights, T = {trained / 1e9:.3f} 10^9 "
        f"trained; {sizes.split.ranks} ranks, ZeRO stage {sizes.split.stage}; rows of "
        f"{sizes.row} tokens; {options.flops:.3g} FLOP/s and {options.gb_per_s:g} GB/s a GPU\n"
    )
    print(memory_table(plan, options.gpu_gib) + "\n")
    print(traffic_table(plan, options.gb_per_s) + "\n")
    print(work_table(plan, options.flops))


if __name__ == "__main__":
    try:
        main()
    except USER_ERRORS as error:
        sys.exit(f"plan: {explain(error)}")
