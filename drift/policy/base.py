"""Policy: a backbone whose row i speaks of position i, with its special ids and chat template."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerFast

from drift.common.errors import CheckpointError
from drift.policy.backbone import Backbone, BackboneConfig, Cache, Linear, widened

HEAD_CHUNK_BYTES = 256 * 2**20  # float32 logits made at one time
VALUE_HEAD = "value_head."  # of its parameter names
CPU_CHUNK_BYTES = 16 * 2**20  # on a CPU: what its cache holds


def head_chunk_bytes(*, on_cpu: bool) -> int:
    return min(HEAD_CHUNK_BYTES, CPU_CHUNK_BYTES) if on_cpu else HEAD_CHUNK_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Adapter(rank=8, alpha=16.0, targets=("q_proj",), base="data/tiny", base_sha256="9f2c...")."""

    rank: int
    alpha: float  # the update is scaled by alpha / rank
    targets: tuple[str, ...]  # our names of the linear layers
    base: str  # path or hub name of the frozen weights
    base_sha256: str


class Place(NamedTuple):
    """Where a weight stands in a checkpoint: a tensor, or some of its rows."""

    tensor: str
    rows: slice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What sets one family of checkpoints apart; an instance of it is a family's whole file."""

    name: str  # `model.family`
    model_types: tuple[str, ...]  # in the checkpoint's config.json
    read_config: Callable[[dict[str, Any]], BackboneConfig]
    write_config: Callable[[BackboneConfig], dict[str, Any]]
    top_names: dict[str, str]  # our weight name -> the official one
    block_names: dict[str, str]  # the same inside block {i}
    block_prefix: str  # official, with {i}
    end_of_turn: str | None = (
        None  # ends an answer in the chat template; None: end of sequence does
    )
    architecture: str | None = None  # in `architectures`, where another family has the model_type
    # tokens of a block where neither model.block_length nor config.json says; 0: attention is full;
    # None: must be said
    block_length: int | None = 0
    mask: int | None = None  # the mask id where neither config.json nor the tokenizer names one

    def places(self, config: BackboneConfig) -> dict[str, Place]:
        """Every weight of a checkpoint: our name -> where it stands in the official files."""
        names = dict(self.top_names)
        for i in range(config.num_layers):
            prefix = self.block_prefix.format(i=i)
            for ours, official in self.block_names.items():
                absent = (ours.endswith(".bias") and not config.qkv_bias) or (
                    ours.endswith(("q_norm.weight", "k_norm.weight")) and not config.qk_norm
                )
                if not absent:
                    names[f"blocks.{i}.{ours}"] = prefix + official
        if config.tie_head:
            del names["head.weight"]
        return {ours: Place(official) for ours, official in names.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialIds:
    mask: int
    pad: int
    stop: tuple[int, ...]  # end of sequence first, end of turn last


class ValueHead(nn.Module):
    """A number for each hidden state, in float32; 0 until it is trained.

    The mean over the width of weight * hidden state, plus a bias: hidden states come from a norm,
    so AdamW moves the number by about its learning rate in an update, whatever the width.
    """

    def __init__(self, hidden_size: int, device: torch.device):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, device=device))
        self.bias = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, hidden_ND: Tensor) -> Tensor:
        with torch.autocast(hidden_ND.device.type, enabled=False):
            mean_N = hidden_ND.float() @ (self.weight.float() / len(self.weight))
            return mean_N + self.bias.float()


class Policy(nn.Module):
    """A masked diffusion language model: p(token at position i | everything that is not masked).

    The network never predicts the mask token: its probability is taken as 0, in the sampler and
    in the learner alike (MDLM's zero masking probability, arXiv 2406.07524).
    """

    def __init__(
        self,
        backbone: Backbone,
        family: Family,
        special: SpecialIds,
        *,
        raw_config: dict[str, Any] | None = None,
        tokenizer: PreTrainedTokenizerFast | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.family = family
        self.special = special
        self.raw_config = raw_config or {}
        self._tokenizer = tokenizer
        self.official_files: dict[str, bytes] = {}  # what official code needs beside config.json
        self.adapter: Adapter | None = None  # set by drift.policy.lora
        self.value_head: ValueHead | None = None  # part of no saved policy
        self.kept_cache: Cache | None = None  # of compiled decoding, between its calls
        self.split = False  # ZeRO-3: each rank holds a part of each weight

    @property
    def device(self) -> torch.device:
        return self.backbone.embed.weight.device

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        if self._tokenizer is None:
            raise CheckpointError("this checkpoint has no tokenizer.json; it can only make logits")
        return self._tokenizer

    def attach_value_head(self) -> None:
        """Let `forward` also say what reward is expected; all 0 until it is trained."""
        self.value_head = ValueHead(self.backbone.config.hidden_size, self.device)

    def settle(self) -> None:
        """A decode is done; a sampler whose ranks work in step waits here for the others."""

    def source(self, positions: Tensor) -> Tensor:
        """The row of the network that speaks of each position.

        Without a shift, its own. With one (Dream), position i reads row i-1; position 0, which
        nothing precedes, reads row 0.
        """
        return (positions - 1).clamp(min=0) if self.backbone.config.shift else positions

    def compute_dtype(self) -> torch.dtype:
        """Of keys, values and hidden states: autocast's where it is on, else the weights'."""
        if torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return self.backbone.embed.weight.dtype

    def hidden_at(
        self,
        ids_BS: Tensor,
        lengths_B: Tensor,
        positions_BQ: Tensor,
        block_BJ: Tensor | None = None,
    ) -> Tensor:
        """Hidden states that speak of some columns of each row: [B, Q, D].

        With states behind the rows the columns are those of states; then with a shift a state's
        first token is spoken of by the last clean token of the block before.
        """
        if block_BJ is None:
            return self.backbone(ids_BS, lengths_B, self.source(positions_BQ))
        if self.backbone.config.shift:
            size = self.backbone.config.block_length
            clean = ids_BS.shape[1] - block_BJ.shape[1] * size
            state_BQ = (positions_BQ - clean).clamp(min=0) // size
            first_BQ = (positions_BQ - clean) % size == 0
            before_BQ = (block_BJ.gather(1, state_BQ) * size - 1).clamp(min=0)
            positions_BQ = torch.where(first_BQ, before_BQ, positions_BQ - 1).clamp(min=0)
        return self.backbone(ids_BS, lengths_B, positions_BQ, block_BJ)

    def logits(self, ids_BS: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """The network's raw logits, [B, S, V]; row i speaks of position i.

        Args:
            ids_BS: [B, S] int64, rows padded at the end.
            lengths_B: [B] int64, real tokens of each row; None: all S.
        """
        positions_S = torch.arange(ids_BS.shape[1], device=ids_BS.device)
        return self.backbone.head(self.backbone(ids_BS, lengths_B)[:, self.source(positions_S)])

    def denoising_logits(self, hidden_ND: Tensor, linear: Linear | None = None) -> Tensor:
        """Float32 logits [N, V] of chosen hidden states, the mask token excluded (-inf).

        linear: the head, where it is in use already. Of a float64 network they are float64.
        """
        logits = widened((linear or self.backbone.head)(hidden_ND))
        if not torch.is_grad_enabled():  # in place: a copy of logits costs as much as their softmax
            logits[:, self.special.mask] = -torch.inf
            return logits
        blocked = torch.zeros_like(logits[:1], dtype=torch.bool)
        blocked[:, self.special.mask] = True
        return logits.masked_fill(blocked, -torch.inf)

    def head_chunk(self) -> int:
        """Positions whose logits are made at one time."""
        size = head_chunk_bytes(on_cpu=self.device.type == "cpu")
        return max(1, size // (4 * self.backbone.config.vocab_size))

    def forward(
        self,
        ids_MS: Tensor,
        lengths_M: Tensor,
        row_N: Tensor,
        position_N: Tensor,
        target_N: Tensor,
        temperature: float,
        candidate_N: Tensor | None = None,
        least_prob: float = 0.0,
        block_MJ: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Score chosen tokens; the head runs on their positions only, in chunks.

        Args:
            ids_MS: [M, S] int64, what the network sees, masks included.
            lengths_M: [M] int64, real tokens of each row, without states.
            row_N, position_N: [N] int64, rows and columns where the tokens stand; row_N ascends.
            target_N: [N] int64, the tokens.
            temperature: > 0, divides the logits.
            candidate_N: [N] bool, tokens that are scored only if they have `least_prob`; the head
                keeps nothing for the backward pass of those that have not.
            least_prob: from 0 to 1.
            block_MJ: [M, J] int64, the blocks of the states that stand behind the rows; the tokens
                are scored in them (drift/policy/states.py). None: there are none.

        Returns:
            log-prob and entropy (nats) of each chosen token, and the value head's output for it,
            all [N] float32; the last None where there is no head. Of a candidate that is not
            scored the log-prob is -inf and the entropy 0.
        """
        count_M = torch.bincount(row_N, minlength=len(ids_MS))
        first_M = count_M.cumsum(0) - count_M
        slot_N = torch.arange(len(row_N), device=row_N.device) - first_M[row_N]
        # one column at least: an empty micro-batch goes all the way too, for ZeRO-3's sake
        positions_MQ = position_N.new_zeros(len(ids_MS), max(1, int(count_M.max())))
        positions_MQ[row_N, slot_N] = position_N
        hidden_ND = self.hidden_at(ids_MS, lengths_M, positions_MQ, block_MJ)[row_N, slot_N]
        value_N = None if self.value_head is None else self.value_head(hidden_ND)

        def use(linear: Linear, hidden_ND: Tensor) -> tuple[Tensor, Tensor]:
            if candidate_N is None:
                return self._score(linear, hidden_ND, target_N, temperature)
            with torch.no_grad():
                found_N, _ = self._score(linear, hidden_ND.detach(), target_N, temperature)
            kept_N = ~candidate_N | (found_N.exp() >= least_prob)
            kept = self._score(linear, hidden_ND[kept_N], target_N[kept_N], temperature)
            rest = torch.full_like(found_N, -torch.inf), torch.zeros_like(found_N)
            logp_N, entropy_N = (
                r.masked_scatter(kept_N, k) for r, k in zip(rest, kept, strict=True)
            )
            return logp_N, entropy_N

        return *self.backbone.head(hidden_ND, use), value_N

    def _score(
        self, linear: Linear, hidden_ND: Tensor, target_N: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy of each token, [N] each, from what speaks of it."""
        size = self.head_chunk()
        parts = [
            self._score_chunk(linear, hidden, target, temperature)
            for hidden, target in zip(hidden_ND.split(size), target_N.split(size), strict=True)
        ]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _score_chunk(
        self, linear: Linear, hidden: Tensor, target: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        def score(hidden: Tensor) -> tuple[Tensor, Tensor]:
            logps = (self.denoising_logits(hidden, linear) / temperature).log_softmax(-1)
            entropy = -(logps.exp() * logps.nan_to_num(neginf=0.0)).sum(-1)
            return logps.gather(-1, target[:, None])[:, 0], entropy

        if torch.is_grad_enabled() and len(hidden) == self.head_chunk():
            # a full chunk: recompute its logits in the backward pass instead of keeping them
            return checkpoint(score, hidden, use_reentrant=False)  # pyright: ignore
        return score(hidden)
