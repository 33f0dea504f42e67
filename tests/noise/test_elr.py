from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from torchstone.noise import EarlyLearningRegularization, early_learning_penalty, updated_targets


def batch(seed: int = 0, size: int = 5, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(size, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (size,), generator=generator), torch.randperm(9, generator=generator)[:size]


def criterion(**arguments) -> EarlyLearningRegularization:
    return EarlyLearningRegularization(9, 4, dtype=torch.float64, **arguments)


def oracle(state, logits, target, index, beta, strength, eps):
    """The equations in plain loops; changes ``state`` (a list of rows) and returns the loss."""
    cross_entropy = penalty = 0.0
    for z, y, i in zip(logits.tolist(), target.tolist(), index.tolist(), strict=True):
        exponentials = [math.exp(value) for value in z]
        softmax = [value / sum(exponentials) for value in exponentials]
        p = [min(max(value, eps), 1 - eps) for value in softmax]
        state[i] = [beta * t + (1 - beta) * value / sum(p) for t, value in zip(state[i], p, strict=True)]
        cross_entropy -= math.log(softmax[y])
        penalty += math.log(1 - sum(t * value for t, value in zip(state[i], p, strict=True)))
    return (cross_entropy + strength * penalty) / len(logits)


def test_equals_the_equations_in_plain_loops():
    module = criterion(momentum=0.6, strength=2.5, eps=0.02)
    state = [[0.0] * 4 for _ in range(9)]
    for seed in range(6):
        logits, target, index = batch(seed)
        loss = module(logits, target, index)
        torch.testing.assert_close(loss.item(), oracle(state, logits, target, index, 0.6, 2.5, 0.02))
    torch.testing.assert_close(module.targets, torch.tensor(state, dtype=torch.float64))


def test_no_strength_is_cross_entropy_gradient_too():
    logits, target, index = batch()
    logits.requires_grad_()
    loss, expected = criterion(strength=0.0)(logits, target, index), F.cross_entropy(logits, target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0])


def test_no_momentum_makes_the_target_the_prediction():
    logits, target, index = batch()
    module = criterion(momentum=0.0, eps=1e-12)
    module(logits, target, index)
    torch.testing.assert_close(module.targets[index], logits.softmax(1))


def test_gradcheck_with_fixed_targets():
    logits, target, index = batch()
    module = criterion()
    module(logits.flip(0), target, index)
    module.eval()
    assert torch.autograd.gradcheck(lambda z: module(z, target, index), logits.requires_grad_())


def test_no_gradient_flows_through_the_targets():
    logits, _, _ = batch()
    moved = updated_targets(torch.zeros_like(logits), logits.requires_grad_())
    assert not moved.requires_grad


def test_the_penalty_pulls_towards_the_target():
    logits = torch.zeros(1, 3, requires_grad=True)
    early_learning_penalty(logits, torch.tensor([[0.8, 0.1, 0.1]])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]


def test_evaluation_and_unvisited_samples_leave_the_state_alone():
    logits, target, index = batch()
    module = criterion()
    module(logits, target, index)
    before = module.targets.clone()
    module.eval()
    module(logits.flip(0), target, index)
    assert torch.equal(module.targets, before)
    module.train()
    module(logits[:1], target[:1], index[:1])
    changed = (module.targets != before).any(1).nonzero().flatten()
    assert changed.tolist() == [index[0].item()]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.floats(0, 0.99))
def test_targets_are_sub_probabilities_and_order_does_not_matter(seed, momentum):
    one, two = criterion(momentum=momentum), criterion(momentum=momentum)
    for step in range(3):
        logits, target, index = batch(seed + step)
        order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(one(logits, target, index), two(logits[order], target[order], index[order]))
    assert (one.targets >= 0).all()
    assert (one.targets.sum(1) <= 1 + 1e-12).all()
    torch.testing.assert_close(one.targets, two.targets, rtol=0, atol=0)


def test_state_dict_resumes_and_deepcopy_is_apart():
    straight, stopped = criterion(), criterion()
    for seed in range(2):
        straight(*batch(seed))
        stopped(*batch(seed))
    resumed = criterion()
    resumed.load_state_dict(stopped.state_dict())
    twin = copy.deepcopy(stopped)
    for seed in range(2, 4):
        assert torch.equal(straight(*batch(seed)), resumed(*batch(seed)))
    assert torch.equal(straight.targets, resumed.targets)
    assert torch.equal(twin.targets, stopped.targets)


def test_not_a_number_spoils_the_loss_but_not_the_state():
    logits, target, index = batch()
    module = criterion()
    logits[1, 2] = math.nan
    assert module(logits, target, index).isnan()
    assert module.targets[index[1]].eq(0).all()
    assert module.targets[index[0]].gt(0).all()


def test_empty_batch_is_zero_and_strided_input_is_welcome():
    empty = torch.zeros(0, 4, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    loss = criterion()(empty, nothing, nothing)
    loss.backward()
    assert loss.item() == 0
    logits, target, index = batch()
    strided = logits.T.contiguous().T
    assert torch.equal(criterion()(strided, target, index), criterion()(logits, target, index))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_targets_in_half_precision_stay_finite(dtype):
    module = EarlyLearningRegularization(3, 2, momentum=0.5, dtype=dtype)
    logits = torch.tensor([[20.0, -20.0]] * 3, requires_grad=True)
    losses = [module(logits, torch.zeros(3, dtype=torch.int64), torch.arange(3)) for _ in range(30)]
    losses[-1].backward()
    assert module.targets.dtype == dtype
    assert torch.stack(losses).isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_autocast_is_computed_in_float32():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = torch.nn.Linear(3, 4)(torch.ones(2, 3))
        loss = EarlyLearningRegularization(9, 4)(logits, torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32


def test_a_repeated_sample_is_warned_about():
    logits, target, _ = batch()
    with pytest.warns(UserWarning, match="names a sample twice"):
        criterion()(logits, target, torch.tensor([0, 1, 2, 3, 3]))


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(5, 3)}, ValueError, r"logits must have 4 columns \(num_classes\), but have 3"),
        ({"target": torch.full((5,), 4)}, ValueError, "target must lie in 0..3"),
        ({"index": torch.arange(5) + 5}, ValueError, "index must lie in 0..8, but spans 5..9"),
        ({"index": torch.arange(5).int()}, TypeError, "index must have dtype torch.int64"),
        ({"index": torch.arange(4)}, ValueError, "index must have as many rows as logits"),
    ],
)
def test_bad_batches(change, error, message):
    logits, target, index = batch()
    with pytest.raises(error, match=message):
        criterion()(**{"logits": logits, "target": target, "index": index, **change})


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be >= 1"),
        ({"num_classes": 1}, ValueError, "num_classes must be >= 2"),
        ({"momentum": 1.0}, ValueError, r"momentum must lie in \[0, 1\)"),
        ({"strength": -1.0}, ValueError, "strength must lie in"),
        ({"eps": 0.5}, ValueError, "eps must lie in"),
        ({"dtype": torch.int64}, TypeError, "dtype must be floating point"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        EarlyLearningRegularization(**{"num_samples": 4, "num_classes": 4, **arguments})


@pytest.mark.untyped
def test_compiles_without_a_graph_break():
    logits, target, index = batch()
    module, expected = criterion(), criterion()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(logits, target, index), expected(logits, target, index))
    torch.testing.assert_close(module.targets, expected.targets)
