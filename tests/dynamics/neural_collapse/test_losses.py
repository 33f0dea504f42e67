from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from torchstone.dynamics import MSEClassificationLoss, RescaledMSELoss
from torchstone.dynamics.neural_collapse.losses import rescaled_mse

B, K = 9, 5
Y = torch.arange(B) % K


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(B, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_with_ones_it_is_the_mean_squared_error() -> None:
    z, expected = logits(), torch.nn.MSELoss()(logits(), F.one_hot(Y, K).double())
    for loss in (RescaledMSELoss(K), MSEClassificationLoss(K)):
        torch.testing.assert_close(loss(z, Y), expected)
        torch.testing.assert_close(loss(z, F.one_hot(Y, K).double()), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_it_is_the_sum_written_out(reduction: str) -> None:
    z, alpha, height = logits(), 5.0, 3.0
    weights = torch.ones(B, K).double()
    heights = torch.zeros(B, K).double()
    for row, label in enumerate(Y.tolist()):
        weights[row, label], heights[row, label] = alpha, height
    rows = (weights * (z - heights) ** 2).sum(1) / K
    expected = {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction]
    torch.testing.assert_close(RescaledMSELoss(K, alpha, height, reduction)(z, Y), expected)
    one_hot = F.one_hot(Y, K).double()
    torch.testing.assert_close(RescaledMSELoss(K, alpha, height, reduction)(z, one_hot), expected)


def test_soft_labels_weigh_between() -> None:
    z, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.25, 0.75]])
    # (1 - .5)^2 (1 + 2 * .25) and (2 - 1.5)^2 (1 + 2 * .75), over 2
    assert float(rescaled_mse(z, y, alpha=3.0, target_scale=2.0)) == pytest.approx(0.5)


@pytest.mark.parametrize("soft", [False, True])
def test_gradient(soft: bool) -> None:
    target = F.one_hot(Y, K).double() if soft else Y
    z = logits().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: rescaled_mse(z, target, alpha=5.0, target_scale=2.0), z)


def test_it_runs_for_a_stack() -> None:
    z, y = torch.stack([logits(seed) for seed in range(3)]), torch.stack([(Y + seed) % K for seed in range(3)])
    for loss in (RescaledMSELoss(K, 5.0, 2.0), MSEClassificationLoss(K)):
        stacked = torch.vmap(loss)(z, y)
        torch.testing.assert_close(stacked, torch.stack([loss(one, own) for one, own in zip(z, y, strict=True)]))


def test_an_empty_batch_is_zero_and_half_precision_is_upcast() -> None:
    assert float(RescaledMSELoss(K)(torch.zeros(0, K), Y[:0])) == 0
    assert RescaledMSELoss(K)(logits().bfloat16(), Y).dtype == torch.float32


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("z", "y", "error", "says"),
    [
        (torch.ones(B, K + 1), Y, ValueError, r"5 columns \(num_classes\), but have 6"),
        (torch.ones(B, K).long(), Y, TypeError, "logits must be floating point"),
        (torch.ones(B), Y, ValueError, "logits must have shape"),
        (torch.ones(B, K), Y + 1, ValueError, "target must lie in 0..4, but spans 1..5"),
        (torch.ones(B, K), Y.int(), TypeError, "target must be int64"),
        (torch.ones(B, K), Y[:-1], ValueError, "as many rows as logits"),
        (
            torch.ones(B, K),
            torch.ones(B, K - 1),
            ValueError,
            r"soft labels of shape \(9, 5\), but is torch.float32 of shape \(9, 4\)",
        ),
        (torch.ones(B, K), Y[:, None], ValueError, "target must have shape"),
    ],
)
def test_bad_batches_are_named(z: torch.Tensor, y: torch.Tensor, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        RescaledMSELoss(K)(z, y)


@pytest.mark.untyped
def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="alpha must lie in"):
        RescaledMSELoss(K, alpha=0.0)
    with pytest.raises(ValueError, match="target_scale must lie in"):
        RescaledMSELoss(K, target_scale=-1.0)
    with pytest.raises(ValueError, match="reduction must be one of"):
        RescaledMSELoss(K, reduction="median")
