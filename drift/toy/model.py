"""A masked diffusion model small enough to count: every answer, every trajectory, every gradient.

A few words, a canvas of a few tokens, a real network (drift.policy) with random weights, the real
rules of decoding (drift.rollout). There are (W + 1)^C canvases of words and masks. What the network
says of all of them is a table; the probability of a trajectory is a product
of numbers of the table, and the gradient of anything a combination of the table's gradients.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from drift.common import rng
from drift.common.types import Trace
from drift.config.commands import ToyConfig
from drift.config.rollout import RolloutConfig
from drift.policy.backbone import Backbone, BackboneConfig
from drift.policy.base import Policy, SpecialIds
from drift.policy.llada import LLADA
from drift.rollout.remasking import rule_of
from drift.rollout.sampling import CONFIDENCES

STOP, MASK, FIRST = 0, 1, 2  # token ids: the stop token is a word, too


def make_toy(config: ToyConfig, length: int, seed: int) -> Policy:
    """A network in float64; its words are the stop token and `num_words` - 1 others."""
    shape = BackboneConfig(
        vocab_size=config.num_words + 1,
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        mlp_size=32,
        rope_theta=10_000.0,
        norm_eps=1e-5,
        max_positions=config.prompt_length + length,
        qkv_bias=False,
        tie_head=False,
        head_size=4,
    )
    backbone = Backbone(shape)
    backbone.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        backbone.head.weight.mul_(config.sharpness)
    policy = Policy(backbone, LLADA, SpecialIds(mask=MASK, pad=STOP, stop=(STOP,))).double()
    fit(policy, space_of(config, length), config.fit_steps, seed)
    return policy


def fit(policy: Policy, space: "Space", steps: int, seed: int) -> None:
    """Train on a random distribution of answers, so that the orders agree better.

    Masked diffusion training in expectation: in every state the network learns the distribution
    of each hidden word, by cross-entropy, states weighed by how likely their words are. A perfect
    fit gives an answer one probability in every order, and the ELBO no bias.
    """
    generator = torch.Generator().manual_seed(seed)
    states_S = torch.arange(space.num_canvases)
    seen_SC = space.digits(states_S)
    answers_AC = seen_SC[(seen_SC > 0).all(1)]
    prob_A = (2 * torch.randn(len(answers_AC), generator=generator).double()).softmax(0)
    fits_SA = ((seen_SC[:, None] == 0) | (seen_SC[:, None] == answers_AC)).all(2) * prob_A
    words_ACW = torch.nn.functional.one_hot(answers_AC - 1, space.num_words).double()
    target_SCW = torch.einsum("sa,acw->scw", fits_SA, words_ACW) * (seen_SC == 0)[:, :, None]
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -(target_SCW * word_logps(policy, space, states_S, 1.0)).sum()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def lagging(policy: Policy, lag: float, seed: int) -> None:
    """Move each weight tensor by noise of `lag` times its own size."""
    generator = torch.Generator().manual_seed(seed)
    for weight in policy.parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        weight.add_(lag * weight.square().mean().sqrt() * noise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The canvases of a toy, by number: a digit for each position, 0 a mask, w + 1 the word w.

    A state is a canvas behind a prompt some of whose tokens are hidden: number of the prompt's
    pattern * num_canvases + number of the canvas.
    """

    num_words: int
    length: int
    prompt: list[int]
    until_stop: bool = False  # as in `ToyConfig`

    @property
    def num_canvases(self) -> int:
        return (self.num_words + 1) ** self.length

    @property
    def words(self) -> Tensor:
        """[W] int64: token ids."""
        return torch.tensor([STOP, *range(FIRST, FIRST + self.num_words - 1)])

    def digits(self, number: Tensor) -> Tensor:
        """[..., C] int64: 0 a mask, w + 1 the word w."""
        powers_C = (self.num_words + 1) ** torch.arange(self.length)
        return number[..., None] // powers_C % (self.num_words + 1)

    def number(self, digits: Tensor) -> Tensor:
        """The inverse of `digits`: [...] int64."""
        return (digits * (self.num_words + 1) ** torch.arange(self.length)).sum(-1)

    def tokens(self, digits: Tensor) -> Tensor:
        """Token ids of digits."""
        return torch.cat([torch.tensor([MASK]), self.words])[digits]

    def digits_of(self, tokens: Tensor) -> Tensor:
        """Digits of token ids: the stop token is the word 0."""
        return torch.where(tokens == STOP, 1, torch.where(tokens == MASK, 0, tokens))


def space_of(config: ToyConfig, length: int) -> Space:
    """The space of a toy's canvases; its prompt is the same word again and again."""
    prompt = [FIRST] * config.prompt_length
    return Space(
        num_words=config.num_words, length=length, prompt=prompt, until_stop=config.until_stop
    )


def state_rows(space: Space, states: Tensor) -> Tensor:
    """What the network sees in states: [T, L + C] token ids."""
    digits_TC = space.digits(states % space.num_canvases)
    pattern_T1 = (states // space.num_canvases)[:, None]
    places_L = torch.arange(len(space.prompt))
    hidden_TL = (pattern_T1 >> places_L) & 1 == 1
    prompt_TL = torch.where(hidden_TL, MASK, torch.tensor(space.prompt))
    return torch.cat([prompt_TL, space.tokens(digits_TC)], dim=1)


def word_logps(policy: Policy, space: Space, states: Tensor, temperature: float) -> Tensor:
    """log p(word at a position | state) by the learner's own forward: [T, C, W], with graph."""
    ids_TS = state_rows(space, states)
    num_prompt, shape = len(space.prompt), (len(states), space.length, space.num_words)
    row, position, word = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
    length_T = torch.full((len(states),), ids_TS.shape[1])
    logp_N, *_ = policy(
        ids_TS,
        length_T,
        row.flatten(),
        num_prompt + position.flatten(),
        space.words[word.flatten()],
        temperature,
    )
    return logp_N.view(shape)


@torch.no_grad()
def table(policy: Policy, space: Space, temperature: float, num_patterns: int = 1) -> Tensor:
    """What the network says of every state: [T, C, W] float64; of use where the state has masks."""
    states = torch.arange(num_patterns * space.num_canvases)
    return word_logps(policy, space, states, temperature).double()


def gradients(policy: Policy, space: Space, temperature: float, num_patterns: int) -> Tensor:
    """The gradient of every number of the table by all weights: [T, C, W, weights] float32.

    0 where a state shows the position. Its size is what bounds the toy.
    """
    weights = [w for w in policy.parameters() if w.requires_grad]
    num_states = num_patterns * space.num_canvases
    size = sum(w.numel() for w in weights)
    found = torch.zeros(num_states, space.length, space.num_words, size)
    for state in range(num_states):
        masked_C = space.digits(torch.tensor(state % space.num_canvases)) == 0
        if not bool(masked_C.any()):
            continue
        logp_N = word_logps(policy, space, torch.tensor([state]), temperature)[0, masked_C]
        parts = torch.autograd.grad(
            logp_N.flatten(), weights, torch.eye(logp_N.numel()), is_grads_batched=True
        )
        rows = torch.cat([p.flatten(1) for p in parts], dim=1)
        found[state, masked_C] = rows.view(*logp_N.shape, size).float()
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectories:
    """Every way in which the sampler can write an answer: B of them.

    Trajectories(trace=Trace(...), prob_B=[0.5, 0.5], digits_BC=[[1], [2]])
    """

    trace: Trace
    prob_B: Tensor  # float64, with graph if the table has one; they add up to 1
    digits_BC: Tensor  # the answers: word + 1, 0 where nothing was committed


def order_of(confidence_DK: Tensor, masked_K: Tensor, random: bool) -> Iterator[Tensor]:
    """The confidences that the rule compares; if the order is random, every order of the masked."""
    if not random:
        yield confidence_DK
        return
    places = masked_K.nonzero()[:, 0]
    for order in itertools.permutations(range(len(places))):
        one_K = torch.zeros(masked_K.shape)
        one_K[places] = torch.tensor(order, dtype=torch.float32)
        yield one_K.expand_as(confidence_DK)


def transitions(
    table_SCW: Tensor,
    plain_SCW: Tensor,
    space: Space,
    canvas: int,
    block: range,
    steps_left: int,
    config: RolloutConfig,
) -> tuple[Tensor, Tensor]:
    """One denoising step from a canvas: the next canvases [N], and their probabilities [N].

    Every joint draw of words at the masked positions of the block is made, and the rule says which
    of them it would commit.

    Args:
        table_SCW: log-probs at the temperature.
        plain_SCW: the same at temperature 1, for the confidences.
        space: of the canvases.
        canvas: a number.
        block: positions of the current block.
        steps_left: denoising steps left for the block, this one counted.
        config: the rule.
    """
    digits_C = space.digits(torch.tensor(canvas))
    masked_K = digits_C[block.start : block.stop] == 0
    places_m = masked_K.nonzero()[:, 0] + block.start
    words_Dm = torch.cartesian_prod(*[torch.arange(space.num_words)] * len(places_m))
    words_Dm = words_Dm.view(-1, len(places_m))
    prob_D = table_SCW[canvas, places_m, words_Dm].sum(1).exp()
    confidence_DK = torch.zeros(len(words_Dm), len(masked_K))
    for j, place in enumerate(places_m.tolist()):
        probs_DW = plain_SCW[canvas, place].detach().exp().float().expand(len(words_Dm), -1)
        of_drawn_D = CONFIDENCES[config.confidence](probs_DW, words_Dm[:, j : j + 1])
        confidence_DK[:, place - block.start] = of_drawn_D
    masked_DK = masked_K.expand(len(words_Dm), -1)
    left_D = torch.full((len(words_Dm),), steps_left)
    drawn_DC = digits_C.repeat(len(words_Dm), 1)
    drawn_DC[:, places_m] = words_Dm + 1
    nexts: list[Tensor] = []
    for order_DK in order_of(confidence_DK, masked_K, config.confidence == "random"):
        commit_DC = torch.zeros(drawn_DC.shape, dtype=torch.bool)
        chosen_DK = rule_of(config)(order_DK, masked_DK, left_D, config)
        commit_DC[:, block.start : block.stop] = chosen_DK
        nexts.append(space.number(torch.where(commit_DC, drawn_DC, digits_C)))
    found_N, index = torch.cat(nexts).unique(return_inverse=True)
    share_D = prob_D.repeat(len(nexts)) / len(nexts)
    return found_N, torch.zeros(len(found_N), dtype=share_D.dtype).index_add(0, index, share_D)


def enumerate_trajectories(
    table_SCW: Tensor, plain_SCW: Tensor, space: Space, config: RolloutConfig
) -> Trajectories:
    """Every trajectory with its probability, step by step from the canvas of masks.

    Args:
        table_SCW: [canvases, C, W] float64 log-probs at the temperature; with graph, if the
            probabilities are to have one.
        plain_SCW: the same at temperature 1.
        space: of the canvases.
        config: sizes and rule of the decoding.
    """
    size = config.block_length
    known: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
    open_: list[_Path] = [_Path(canvases=[0], prob=torch.ones((), dtype=torch.float64))]
    done: list[_Path] = []
    while open_:
        path = open_.pop()
        key = (path.canvases[-1], path.block, path.block_steps)
        if key not in known:
            block = range(path.block * size, (path.block + 1) * size)
            left = config.steps_of_block - path.block_steps
            known[key] = transitions(
                table_SCW, plain_SCW, space, path.canvases[-1], block, left, config
            )
        for canvas, prob in zip(known[key][0].tolist(), known[key][1], strict=True):
            after = path.then(canvas, prob, space, size)
            (done if after.ended else open_).append(after)
    return collected(done, table_SCW.detach(), space)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Path:
    """The canvases that the sampler saw, the last one not yet."""

    canvases: list[int]
    prob: Tensor
    block: int = 0
    block_steps: int = 0
    ended: bool = False

    def then(self, canvas: int, prob: Tensor, space: Space, size: int) -> "_Path":
        digits_K = space.digits(torch.tensor(canvas))[self.block * size : (self.block + 1) * size]
        full = bool((digits_K > 0).all())
        stopped = full and bool((digits_K == 1).any())
        last = (self.block + 1) * size == space.length
        return _Path(
            canvases=[*self.canvases, canvas],
            prob=self.prob * prob,
            block=self.block + full,
            block_steps=0 if full else self.block_steps + 1,
            ended=stopped or (full and last),
        )


def collected(paths: list[_Path], table_SCW: Tensor, space: Space) -> Trajectories:
    """The paths as the trace that the sampler would give."""
    digits_BC = space.digits(torch.tensor([path.canvases[-1] for path in paths]))
    step_BC = torch.full(digits_BC.shape, -1)
    logp_BC = torch.zeros(digits_BC.shape)
    for b, path in enumerate(paths):
        seen_TC = space.digits(torch.tensor(path.canvases))
        for s, (before, after) in enumerate(itertools.pairwise(seen_TC)):
            for c in (before != after).nonzero()[:, 0].tolist():
                step_BC[b, c] = s
                logp_BC[b, c] = table_SCW[path.canvases[s], c, after[c] - 1]
    is_stop_BC = digits_BC == 1
    finished_B = is_stop_BC.any(1)
    trace = Trace(
        prompt_length_B=torch.full((len(paths),), len(space.prompt)),
        canvas_BC=space.tokens(digits_BC),
        unmask_step_BC=step_BC,
        logp_BC=logp_BC,
        length_B=torch.where(finished_B, is_stop_BC.int().argmax(1) + 1, space.length),
        finished_B=finished_B,
        nfe_B=torch.tensor([len(path.canvases) - 1 for path in paths]),
        commits_B=torch.zeros(len(paths), dtype=torch.int64),
    )
    prob_B = torch.stack([path.prob for path in paths])
    return Trajectories(trace=trace, prob_B=prob_B, digits_BC=digits_BC)


def reward(space: Space, digits_BC: Tensor) -> Tensor:
    """1 if the numbers of the words written add up to a multiple of W, else 0: [B] float32.

    All words of an answer count together, so no word is good or bad by itself; with `until_stop`
    those before the first stop token, whose own number is 0.
    """
    words_BC = (digits_BC - 1).clamp(min=0)
    if space.until_stop:
        words_BC = words_BC * ((digits_BC == 1).cumsum(1) == 0)
    return (words_BC.sum(1) % space.num_words == 0).float()


def sampled(trajectories: Trajectories, count: int, key: int) -> Tensor:
    """Numbers of `count` trajectories drawn by their probabilities: [count] int64."""
    cumulative_B = trajectories.prob_B.detach().cumsum(0)
    noise = rng.uniform(key, torch.arange(count)) * cumulative_B[-1]
    return torch.searchsorted(cumulative_B, noise).clamp(max=len(cumulative_B) - 1)
