"""Slow and plain: LLaDA and Dream in float64 with random checkpoints, exact arithmetic, Sudoku.

The networks are written from the families' published formats (official weight names, official
config.json keys), one row and one head at a time, without padding. Nothing here is shared with
drift/.
"""

import json
from fractions import Fraction
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

Weights = dict[str, Tensor]
Config = dict[str, Any]


def rms_norm(x_SD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Each row divided by its root mean square, then scaled."""
    mean_square = x_SD.pow(2).mean(dim=-1, keepdim=True)
    return x_SD / (mean_square + eps).sqrt() * weight_D


def rope(x_SH: Tensor, theta: float) -> Tensor:
    """Half rotation: at position p, dimensions j and j + H/2 turn by p / theta**(2j/H)."""
    length, size = x_SH.shape
    half = size // 2
    out = torch.empty_like(x_SH)
    for position in range(length):
        for j in range(half):
            angle = torch.tensor(position / theta ** (2 * j / size), dtype=torch.float64)
            a, b = x_SH[position, j], x_SH[position, j + half]
            out[position, j] = a * angle.cos() - b * angle.sin()
            out[position, j + half] = b * angle.cos() + a * angle.sin()
    return out


def attention(
    q_SD: Tensor, k_SD: Tensor, v_SD: Tensor, num_heads: int, num_kv_heads: int, theta: float
) -> Tensor:
    """Every position attends to every position; query heads share key-value heads in runs."""
    size = q_SD.shape[1] // num_heads
    keys = [rope(k_SD[:, i * size : (i + 1) * size], theta) for i in range(num_kv_heads)]
    values = [v_SD[:, i * size : (i + 1) * size] for i in range(num_kv_heads)]
    heads: list[Tensor] = []
    for i in range(num_heads):
        shared = i // (num_heads // num_kv_heads)
        query = rope(q_SD[:, i * size : (i + 1) * size], theta)
        weights_SS = (query @ keys[shared].T / sqrt(size)).softmax(dim=-1)
        heads.append(weights_SS @ values[shared])
    return torch.cat(heads, dim=1)


def swiglu(x_SD: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    opened = x_SD @ gate.T
    return (opened * opened.sigmoid() * (x_SD @ up.T)) @ down.T


def llada_logits(weights: Weights, config: Config, ids_S: Tensor) -> Tensor:
    """Float64 logits [S, V]; row i speaks of position i."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    eps = config["rms_norm_eps"]
    x = w["model.transformer.wte.weight"][ids_S]
    for i in range(config["n_layers"]):
        block = f"model.transformer.blocks.{i}."
        h = rms_norm(x, w[block + "attn_norm.weight"], eps)
        q, k, v = (h @ w[f"{block}{name}_proj.weight"].T for name in "qkv")
        mixed = attention(q, k, v, config["n_heads"], config["n_kv_heads"], config["rope_theta"])
        x = x + mixed @ w[block + "attn_out.weight"].T
        h = rms_norm(x, w[block + "ff_norm.weight"], eps)
        gate, up, down = (w[f"{block}{name}.weight"] for name in ("ff_proj", "up_proj", "ff_out"))
        x = x + swiglu(h, gate, up, down)
    head = "wte" if config["weight_tying"] else "ff_out"
    normed = rms_norm(x, w["model.transformer.ln_f.weight"], eps)
    return normed @ w[f"model.transformer.{head}.weight"].T


def dream_logits(weights: Weights, config: Config, ids_S: Tensor) -> Tensor:
    """Float64 logits [S, V], aligned: position i reads row i-1, position 0 reads row 0."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    eps, theta = config["rms_norm_eps"], config["rope_theta"]
    num_heads, num_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    x = w["model.embed_tokens.weight"][ids_S]
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}."
        attn = block + "self_attn."
        h = rms_norm(x, w[block + "input_layernorm.weight"], eps)
        q, k, v = (h @ w[f"{attn}{n}_proj.weight"].T + w[f"{attn}{n}_proj.bias"] for n in "qkv")
        mixed = attention(q, k, v, num_heads, num_kv_heads, theta)
        x = x + mixed @ w[attn + "o_proj.weight"].T
        h = rms_norm(x, w[block + "post_attention_layernorm.weight"], eps)
        x = x + swiglu(h, *(w[f"{block}mlp.{n}_proj.weight"] for n in ("gate", "up", "down")))
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    rows = rms_norm(x, w["model.norm.weight"], eps) @ w[head + ".weight"].T
    return torch.stack([rows[max(position - 1, 0)] for position in range(len(rows))])


ORACLES = {"llada": llada_logits, "dream": dream_logits}


def llada_config(
    *, vocab: int, hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, tied: bool = False
) -> Config:
    """The keys of LLaDA's config.json that matter to the network, with its constants."""
    return {
        "model_type": "llada",
        "d_model": hidden,
        "n_heads": heads,
        "n_kv_heads": kv_heads,
        "n_layers": layers,
        "mlp_hidden_size": mlp,
        "embedding_size": vocab,
        "vocab_size": vocab,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "max_sequence_length": 4096,
        "weight_tying": tied,
        "mask_token_id": vocab - 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


def dream_config(
    *, vocab: int, hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, tied: bool = False
) -> Config:
    """The keys of Dream's config.json that matter to the network, with its constants."""
    return {
        "model_type": "Dream",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": vocab,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": tied,
        "mask_token_id": vocab - 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


CONFIGS = {"llada": llada_config, "dream": dream_config}


def llada_shapes(c: Config) -> dict[str, tuple[int, ...]]:
    hidden, mlp, vocab = c["d_model"], c["mlp_hidden_size"], c["vocab_size"]
    kv = c["n_kv_heads"] * hidden // c["n_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.transformer.wte.weight": (vocab, hidden),
        "model.transformer.ln_f.weight": (hidden,),
    }
    if not c["weight_tying"]:
        shapes["model.transformer.ff_out.weight"] = (vocab, hidden)
    for i in range(c["n_layers"]):
        block = f"model.transformer.blocks.{i}."
        shapes |= {
            block + "attn_norm.weight": (hidden,),
            block + "q_proj.weight": (hidden, hidden),
            block + "k_proj.weight": (kv, hidden),
            block + "v_proj.weight": (kv, hidden),
            block + "attn_out.weight": (hidden, hidden),
            block + "ff_norm.weight": (hidden,),
            block + "ff_proj.weight": (mlp, hidden),
            block + "up_proj.weight": (mlp, hidden),
            block + "ff_out.weight": (hidden, mlp),
        }
    return shapes


def dream_shapes(c: Config) -> dict[str, tuple[int, ...]]:
    hidden, mlp, vocab = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    kv = c["num_key_value_heads"] * hidden // c["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for i in range(c["num_hidden_layers"]):
        block = f"model.layers.{i}."
        for name, rows in (("q", hidden), ("k", kv), ("v", kv)):
            shapes[f"{block}self_attn.{name}_proj.weight"] = (rows, hidden)
            shapes[f"{block}self_attn.{name}_proj.bias"] = (rows,)
        shapes |= {
            block + "self_attn.o_proj.weight": (hidden, hidden),
            block + "mlp.gate_proj.weight": (mlp, hidden),
            block + "mlp.up_proj.weight": (mlp, hidden),
            block + "mlp.down_proj.weight": (hidden, mlp),
            block + "input_layernorm.weight": (hidden,),
            block + "post_attention_layernorm.weight": (hidden,),
        }
    return shapes


SHAPES = {"llada": llada_shapes, "dream": dream_shapes}


def random_weights(family: str, config: Config, seed: int) -> Weights:
    """Float32 tensors under official names; norms, biases and embeddings far from their defaults,
    so that leaving one of them out shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    for name, shape in SHAPES[family](config).items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 2:
            weights[name] = noise / sqrt(shape[1])
        else:
            weights[name] = 0.5 * noise + (0.0 if name.endswith("bias") else 1.0)
    return weights


def write_checkpoint(folder: Path, config: Config, weights: Weights) -> Path:
    """A checkpoint as its authors publish it, without a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_shards(folder: Path, config: Config, weights: Weights, num_shards: int) -> list[str]:
    """The same in several files with an index; returns the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    files = [f"model-{i + 1:05}-of-{num_shards:05}.safetensors" for i in range(num_shards)]
    owner = {name: files[i % num_shards] for i, name in enumerate(weights)}
    for file in files:
        save_file({n: t for n, t in weights.items() if owner[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": owner}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return files


# Arithmetic: a tree is a number, ("-", tree) or (tree, operator, tree)
expression_trees = st.recursive(
    st.integers(0, 999),
    lambda t: st.tuples(st.just("-"), t) | st.tuples(t, st.sampled_from("+-*/"), t),
    max_leaves=10,
)


def rendered(tree: Any) -> str:
    match tree:
        case int(number):
            return str(number)
        case ("-", inner):
            return f"-({rendered(inner)})"
        case (left, operator, right):
            return f"({rendered(left)}) {operator} ({rendered(right)})"
    raise AssertionError(tree)


def exact(tree: Any) -> Fraction | None:
    """The value of a tree, None where it divides by zero."""
    match tree:
        case int(number):
            return Fraction(number)
        case ("-", inner):
            value = exact(inner)
            return None if value is None else -value
    a, b = exact(tree[0]), exact(tree[2])
    if a is None or b is None or (tree[1] == "/" and b == 0):
        return None
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[tree[1]]


def sudoku_grids() -> set[str]:
    """Every 4x4 grid filled cell by cell without a clash."""
    grids = [""]
    for cell in range(16):
        row, column = divmod(cell, 4)
        peers = [
            other
            for other in range(cell)
            if other // 4 == row
            or other % 4 == column
            or (other // 8 == row // 2 and other % 4 // 2 == column // 2)
        ]
        grids = [g + d for g in grids for d in "1234" if d not in {g[other] for other in peers}]
    return set(grids)
