"""The doctor on the embedded checkpoints, healthy and spoilt."""

from dataclasses import replace

import pytest
import torch

from drift.config.compose import typed
from drift.config.model import Dtype
from drift.config.rollout import CacheMode
from drift.learner.layout import micro_batches
from drift.learner.likelihood import token_logps
from drift.planning.diagnosis import Inspection, caches, examine, padding, replay, shift
from drift.policy.loading import load_policy, torch_dtype
from drift.rollout.caching import Cached
from drift.rollout.decoding import decode
from drift.rollout.prompts import encode_all
from drift.tasks import Split, build_task
from drift.tasks.base import GeneratedTask
from tests.configs import composed
from tests.conftest import make_rollout, replay_views

EMBEDDED = [(model, task) for model in ("tiny", "tiny_dream") for task in ("countdown", "sudoku")]
LOADED = [  # each checkpoint, and both families in each dtype
    *((model, task, Dtype.float32) for model, task in EMBEDDED),
    *((*EMBEDDED[i], dtype) for i in (0, 3) for dtype in Dtype if dtype != Dtype.float32),
]
BOTH = pytest.mark.parametrize("dtype", list(Dtype))


def inspection(model: str, task_name: str, dtype: Dtype = Dtype.float32) -> Inspection:
    config = typed(composed(f"model={model}", f"task={task_name}", config="doctor"))
    policy = load_policy(config.model.path, dtype=torch_dtype(dtype))
    task = build_task(config.task)
    assert isinstance(task, GeneratedTask)
    examples, prompts, _ = encode_all(
        policy, config.task, task.examples(Split.test)[:8], config.rollout.gen_length
    )
    answers = [task.demonstration(example, habit=False) for example in examples]
    return Inspection(
        policy=policy,
        dtype=dtype,
        examples=examples,
        prompts=prompts,
        answers=policy.tokenizer(answers, add_special_tokens=False)["input_ids"],
        shown="<|user|>",
        rollout=config.rollout,
    )


@pytest.mark.parametrize(("model", "task", "dtype"), LOADED)
def test_embedded_checkpoints_are_healthy(model: str, task: str, dtype: Dtype) -> None:
    findings = examine(inspection(model, task, dtype))
    assert [finding.name for finding in findings if not finding.healthy] == []


@pytest.mark.parametrize(("model", "task", "dtype"), LOADED)
def test_a_wrong_shift_is_found(model: str, task: str, dtype: Dtype) -> None:
    sick = inspection(model, task, dtype)
    config = sick.policy.backbone.config
    sick.policy.backbone.config = replace(config, shift=not config.shift)
    assert not shift(sick).healthy


@BOTH
def test_attention_to_padding_is_found(dtype: Dtype) -> None:
    sick = inspection("tiny", "countdown", dtype)
    sick = replace(sick, prompts=[*sick.prompts, sick.prompts[0] * 3])
    assert padding(sick).healthy
    backbone = sick.policy.backbone
    forward = backbone.forward
    backbone.forward = lambda ids, *_: forward(ids)  # type: ignore[method-assign]
    assert not padding(sick).healthy


@BOTH
def test_a_learner_that_is_not_the_sampler_is_found(
    dtype: Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick = inspection("tiny", "countdown", dtype)
    trace = sick.sample(CacheMode.none)
    assert replay(sick).healthy
    sick.policy.backbone.blocks[0].attn.out_proj.weight.data.zero_()
    monkeypatch.setattr(Inspection, "sample", lambda *_: trace)
    assert not replay(sick).healthy


@pytest.mark.parametrize(("model", "task"), EMBEDDED)
def test_replay_is_exact_alone_and_beside_longer_rows(model: str, task: str) -> None:
    healthy = inspection(model, task)
    policy, prompts = healthy.policy, [*healthy.prompts, healthy.prompts[0] * 3]
    rows, config = torch.arange(len(prompts)), healthy.rollout
    trace = decode(policy, prompts, rows, config, key=5)
    rollout = make_rollout(prompts, trace)
    views = replay_views(rollout)
    batches = micro_batches(rollout, views, policy.special, tokens_per_forward=10_000)
    learner_BC = torch.zeros_like(trace.logp_BC)
    learner_BC[views.row_N, views.column_N] = token_logps(policy, batches, 1.0).logp_N
    torch.testing.assert_close(learner_BC, trace.logp_BC, atol=1e-5, rtol=0)
    for row, prompt in enumerate(prompts):
        alone = decode(policy, [prompt], rows[row : row + 1], config, key=5)
        assert torch.equal(alone.canvas_BC[0], trace.canvas_BC[row])
        torch.testing.assert_close(learner_BC[row], alone.logp_BC[0], atol=1e-5, rtol=0)


def test_a_cache_that_is_another_model_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert caches(inspection("tiny_dream", "sudoku")).healthy
    monkeypatch.setattr(Cached, "fill", lambda *_, **__: None)  # keys and values stay 0
    assert not caches(inspection("tiny_dream", "sudoku")).healthy
