"""Masked-diffusion supervised fine-tuning: `python -m drift.sft [overrides]`.

Loss of a completion x of C tokens (LLaDA, arXiv 2502.09992, eq. 3):
    E_{t ~ U(0,1)} (1 / (t C)) sum_i 1[token i masked] (-log p(x_i | what is not masked))
with each token masked with probability t. The t of a batch are stratified over (0, 1).

The run's folder gets the policy, whole, every `eval.every` steps and at the last, in `policy/`.
"""

from drift.cli.command import run_command
from drift.config.commands import SFTConfig


def run(config: SFTConfig) -> None:
    """Fine-tune; the policy is saved whole along the way."""
    from drift.training.sft import run

    run(config)


if __name__ == "__main__":
    run_command("sft", run)
