from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from torchstone.noise import GeneralizedCrossEntropy, generalized_cross_entropy


def batch(seed: int = 0, size: int = 6, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(size, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (size,), generator=generator)


def test_known_values():
    logits = torch.log(torch.tensor([[0.25, 0.75], [0.36, 0.64]], dtype=torch.float64))
    loss = generalized_cross_entropy(logits, torch.tensor([0, 1]), q=0.5, reduction="none")
    torch.testing.assert_close(loss, torch.tensor([1.0, 0.4], dtype=torch.float64))


@pytest.mark.parametrize("q", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("k", [None, 0.4])
def test_equals_the_formula_in_plain_loops(q, k):
    logits, target = batch()
    expected = []
    for row, y in zip(logits.tolist(), target.tolist(), strict=True):
        p = math.exp(row[y]) / sum(math.exp(z) for z in row)
        p = p if k is None else max(p, k)
        expected.append((1 - p**q) / q if q else -math.log(p))
    loss = generalized_cross_entropy(logits, target, q=q, k=k, reduction="none")
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))
    mean = generalized_cross_entropy(logits, target, q=q, k=k)
    torch.testing.assert_close(mean.item(), sum(expected) / len(expected))
    total = generalized_cross_entropy(logits, target, q=q, k=k, reduction="sum")
    torch.testing.assert_close(total.item(), sum(expected))


@pytest.mark.parametrize("q", [0.0, 1e-12])
def test_small_q_is_cross_entropy_gradient_too(q):
    logits, target = batch()
    logits.requires_grad_()
    loss = generalized_cross_entropy(logits, target, q=q)
    expected = F.cross_entropy(logits, target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0], rtol=1e-9, atol=1e-10
    )


def test_q_one_is_half_the_absolute_error():
    logits, target = batch()
    absolute = (logits.softmax(1) - F.one_hot(target, 4)).abs().sum(1)
    torch.testing.assert_close(generalized_cross_entropy(logits, target, q=1.0), absolute.mean() / 2)


def test_gradient_is_that_of_cross_entropy_times_p_to_the_q():
    logits, target = batch()
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(generalized_cross_entropy(logits, target, q=0.7, reduction="sum"), logits)
    (cross_entropy,) = torch.autograd.grad(F.cross_entropy(logits, target, reduction="sum"), logits)
    p = logits.detach().softmax(1).gather(1, target[:, None])
    torch.testing.assert_close(gradient, p**0.7 * cross_entropy)


@pytest.mark.parametrize("k", [None, 0.3])
def test_gradcheck(k):
    logits, target = batch()
    assert torch.autograd.gradcheck(lambda z: generalized_cross_entropy(z, target, q=0.7, k=k), logits.requires_grad_())


def test_truncation_silences_unlikely_labels_only():
    logits = torch.tensor([[2.0, 0.0], [-2.0, 0.0]], requires_grad=True)
    generalized_cross_entropy(logits, torch.tensor([0, 0]), k=0.5).backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().min() > 0
    assert logits.grad[1].abs().max() == 0


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[-1e4, 1e4], [1e4, -1e4]], requires_grad=True)
    loss = generalized_cross_entropy(logits, torch.tensor([0, 0]), q=0.7, reduction="none")
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.tensor([1 / 0.7, 0.0]))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.floats(0.01, 1))
def test_bounds_and_invariances(seed, q):
    logits, target = batch(seed)
    loss = generalized_cross_entropy(logits, target, q=q, reduction="none")
    assert ((loss >= 0) & (loss <= 1 / q)).all()
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        generalized_cross_entropy(logits[order], target[order], q=q, reduction="none"), loss[order]
    )
    torch.testing.assert_close(generalized_cross_entropy(logits + 3, target, q=q, reduction="none"), loss)


def test_module_is_the_function():
    logits, target = batch()
    module = GeneralizedCrossEntropy(0.4, k=0.2, reduction="sum")
    expected = generalized_cross_entropy(logits, target, q=0.4, k=0.2, reduction="sum")
    torch.testing.assert_close(module(logits, target), expected, rtol=0, atol=0)
    assert repr(module) == "GeneralizedCrossEntropy(q=0.4, k=0.2, reduction='sum')"


def test_empty_batch_is_zero_and_strided_input_is_welcome():
    empty = torch.zeros(0, 3, requires_grad=True)
    loss = generalized_cross_entropy(empty, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    logits, target = batch()
    strided = logits.T.contiguous().T
    torch.testing.assert_close(generalized_cross_entropy(strided, target), generalized_cross_entropy(logits, target))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, target = batch()
    low = logits.to(dtype)
    loss = generalized_cross_entropy(low, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, generalized_cross_entropy(low.float(), target))


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("logits", "target", "arguments", "error", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), {}, ValueError, "target must lie in 0..2, but spans 0..3"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), {}, TypeError, "target must have dtype torch.int64"),
        (torch.zeros(2, 3), torch.tensor([0]), {}, ValueError, "target must have as many rows as logits"),
        (torch.zeros(3), torch.tensor([0]), {}, ValueError, r"logits must have shape \(batch, classes\)"),
        (torch.zeros(2, 3).long(), torch.tensor([0, 1]), {}, TypeError, "logits must be floating point"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), {"q": 1.5}, ValueError, r"q must lie in \[0, 1\]"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), {"k": 1.0}, ValueError, r"k must lie in \(0, 1\)"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), {"reduction": "max"}, ValueError, "reduction must be one of"),
    ],
)
def test_errors(logits, target, arguments, error, message):
    with pytest.raises(error, match=message):
        GeneralizedCrossEntropy(**arguments)(logits, target)
    with pytest.raises(error, match=message):
        generalized_cross_entropy(logits, target, **arguments)


@pytest.mark.untyped
def test_compiles_without_a_graph_break():
    logits, target = batch()
    compiled = torch.compile(GeneralizedCrossEntropy(k=0.3), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, target), generalized_cross_entropy(logits, target, k=0.3))
