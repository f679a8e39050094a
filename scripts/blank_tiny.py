"""Write an untrained tiny checkpoint: blank_tiny.py {llada|dream} FOLDER [--seed 0]."""

import argparse
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from drift.policy.backbone import Backbone, BackboneConfig
from drift.policy.base import Policy, SpecialIds
from drift.policy.loading import FAMILIES, save_policy

MASK = {"llada": "<|mdm_mask|>", "dream": "<|mask|>", "sdar": "<|MASK|>"}
WORDS = ["\\boxed{", "<answer>", "</answer>"]  # one token each, so that answers stay short
CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + 'END' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A character-level tokenizer with a chat template, mask, end-of-sequence and pad tokens."""
    end_of_turn = FAMILIES[family].end_of_turn or "<|endoftext|>"
    roles = ["<|user|>", "<|assistant|>", "<|system|>"]
    special = ["<|endoftext|>", MASK[family], end_of_turn, *roles]
    vocab = {token: i for i, token in enumerate([*special, *WORDS, *CHARACTERS, "<|unk|>"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        mask_token=MASK[family],
        unk_token="<|unk|>",
        chat_template=TEMPLATE.replace("END", end_of_turn),
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def make_policy(family: str, seed: int, hidden_size: int = 64, num_layers: int = 4) -> Policy:
    tokenizer = make_tokenizer(family)
    config = BackboneConfig(
        vocab_size=128,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=4 if family == "llada" else 2,
        mlp_size=(hidden_size * 8 // 3 + 15) // 16 * 16,
        rope_theta=10_000.0,
        norm_eps=1e-5,
        max_positions=256,
        qkv_bias=family == "dream",
        tie_head=False,
        head_size=24 if family == "sdar" else hidden_size // 4,
        qk_norm=family == "sdar",
        block_length=4 if family == "sdar" else 0,
        shift=family == "dream",
    )
    backbone = Backbone(config)
    backbone.init_weights(torch.Generator().manual_seed(seed))
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("mask", "pad", "eos")}
    special = SpecialIds(mask=ids["mask"], pad=ids["pad"], stop=(ids["eos"],))
    raw = {f"{name}_token_id": value for name, value in ids.items()}
    return Policy(backbone, FAMILIES[family], special, raw_config=raw, tokenizer=tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=sorted(MASK))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    save_policy(make_policy(arguments.family, arguments.seed), arguments.folder)


if __name__ == "__main__":
    main()
