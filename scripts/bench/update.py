"""An update with candidates chosen in the forward that trains, and by a forward of their own.

python scripts/bench/update.py              # two CPU cores, float32, some minutes

masking=sequential, one optimizer step. normalization=view and token choose candidates on the way;
sample does where a row's views fit into a forward (not here), view_token does not: a forward more.
The settings take turns.
"""

import argparse
from pathlib import Path

import common
import torch
from common import machine, peak_gib, prompts_of, random_policy, seconds, show
from learner import rise
from views import rollout_of

from drift.cluster.engine import Engine
from drift.common.types import Advantages
from drift.config.cluster import ClusterConfig
from drift.config.commands import RunConfig
from drift.config.masking import SequentialConfig
from drift.config.model import Dtype
from drift.config.objective import Normalization, ReinforceConfig
from drift.config.optim import OptimConfig
from drift.config.rollout import RolloutConfig
from drift.learner.masking import draw_views
from drift.learner.update import update

SETTINGS = (Normalization.view, Normalization.token, Normalization.sample, Normalization.view_token)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=common.SHAPES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--length", type=int, default=192)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256, help="optim.tokens_per_forward")
    parser.add_argument("--vocabulary", type=int, help="words; LLaDA-8B's share of work is 2944")
    parser.add_argument("--tries", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    policy = random_policy(options.shape, "float32", options.device, options.vocabulary)
    vocabulary = policy.backbone.config.vocab_size
    canvas = torch.tensor(prompts_of(options.rows, options.length, vocabulary))
    rollout = rollout_of(options.rows, options.length, 32, options.prompt, canvas)
    engine = Engine(ClusterConfig(name="local"), Dtype.float32)
    optim = OptimConfig(lr=1e-9, tokens_per_forward=options.tokens)
    engine.prepare(policy, optim, 1000)
    values_B = torch.linspace(-1, 1, options.rows)
    advantages = Advantages(values_B=values_B, used_B=values_B != 0, zero_variance_groups=0)

    def take(normalization: Normalization) -> dict[str, float]:
        config = RunConfig(
            masking=SequentialConfig(num_views=options.views, low_prob_threshold=3e-5),
            objective=ReinforceConfig(normalization=normalization),
            optim=optim,
            rollout=RolloutConfig(),
        )
        draws = draw_views(rollout.trace, rollout.rows_B, config, 1)
        return update(engine, policy, None, rollout, advantages, draws, config).metrics

    times: dict[Normalization, list[float]] = {name: [] for name in SETTINGS}
    scored: dict[Normalization, float] = {}
    take(Normalization.view)  # kernels are chosen and memory is taken
    for _ in range(options.tries):
        for name in SETTINGS:
            took, metrics = seconds(lambda name=name: take(name), options.device)
            times[name].append(took)
            scored[name] = metrics["masking/scored_tokens"]
    best = {name: min(found) for name, found in times.items()}
    rows = []
    for name in SETTINGS:
        peak = peak_gib(options.device)
        rows.append(
            {
                "normalization": name.value,
                "scored": scored[name],
                "seconds": best[name],
                "of view": best[name] / best[Normalization.view],
                "peak GiB": rise(lambda name=name: take(name)) / 2**30 if peak is None else peak,
            }
        )
    about = {
        "machine": machine(options.device),
        "shape": f"{options.shape}, {vocabulary} words, {options.tokens} tokens a forward",
        "rows": f"{options.rows} x {options.views} views of {options.prompt} + {options.length}",
    }
    show("an update", rows, options.json, about)


if __name__ == "__main__":
    main()
