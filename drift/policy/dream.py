"""Dream: Qwen2-shaped, biases on q/k/v, grouped queries, row i predicts token i+1.

It grew out of an autoregressive model, hence the shift. arXiv 2508.15487.
"""

from functools import partial

from drift.policy import hf
from drift.policy.base import Family

DREAM = Family(
    name="dream",
    model_types=("Dream",),
    end_of_turn="<|im_end|>",
    read_config=partial(hf.read_sizes, qkv_bias=True, shift=True),
    write_config=hf.write_sizes,
    top_names=hf.TOP_NAMES,
    block_prefix=hf.BLOCK_PREFIX,
    block_names=hf.QWEN2,
)
