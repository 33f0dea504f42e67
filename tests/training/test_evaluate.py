from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchstone.models import MLP
from torchstone.training import accuracy, auc, feature_matrix, predict


def net() -> MLP:
    return MLP(4, 3, hidden=(8,), batch_norm=True, dropout=0.5, generator=torch.Generator().manual_seed(0))


X = torch.randn(11, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("batch_size", [1, 4, 11, 1000])
def test_predict_equals_the_model_in_evaluation_mode(batch_size):
    model = net()
    model.body[0].eval()
    got = predict(model, X, batch_size=batch_size)
    features = feature_matrix(model, X, batch_size=batch_size)
    assert model.training
    assert not model.body[0].training  # each module's own mode is put back
    assert model.body[1].training
    torch.testing.assert_close(got, model.eval()(X))
    torch.testing.assert_close(features, model.features(X))
    assert not got.requires_grad


def test_mode_is_put_back_after_an_error():
    model = net()
    with pytest.raises(ValueError, match="4 features"):
        predict(model, torch.zeros(2, 5))
    assert model.training


def test_features_can_be_trained_on():
    head = nn.Linear(8, 2)
    head(feature_matrix(net(), X)).sum().backward()
    assert head.weight.grad is not None


@pytest.mark.parametrize("function", [predict, feature_matrix])
def test_empty_input_and_missing_features(function):
    with pytest.raises(ValueError, match="x must have at least 1 row, but has 0"):
        function(net(), X[:0])
    with pytest.raises(ValueError, match="batch_size must be >= 1, but is 0"):
        function(net(), X, batch_size=0)
    with pytest.raises(TypeError, match=r"must have a method features\(x\), but Linear has none"):
        feature_matrix(nn.Linear(4, 2), X)


def test_accuracy():
    logits = torch.tensor([[1.0, 1.0], [0.0, 2.0], [3.0, 1.0], [0.0, 1.0]])
    assert accuracy(logits, torch.tensor([0, 1, 1, 1])) == 0.75
    assert accuracy(logits, torch.tensor([1, 0, 1, 0])) == 0.0


@pytest.mark.parametrize(
    ("logits", "y", "message"),
    [
        (torch.tensor([[float("nan"), 1.0], [0.0, 1.0]]), torch.tensor([0, 1]), "1 rows hold NaN"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "at least 1 row"),
        (torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64), r"as many rows as logits \(2\), but has 3"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64), r"\(n, classes\), but has \(2,\)"),
    ],
)
@pytest.mark.untyped
def test_accuracy_of_nonsense(logits, y, message):
    with pytest.raises(ValueError, match=message):
        accuracy(logits, y)


def test_auc_by_hand():
    positive = torch.tensor([False, False, True, True])
    assert auc(torch.tensor([1.0, 2.0, 3.0, 4.0]), positive) == 1.0
    assert auc(torch.tensor([4.0, 3.0, 2.0, 1.0]), positive) == 0.0
    assert auc(torch.ones(4), positive) == 0.5
    assert auc(torch.tensor([1.0, 3.0, 2.0, 4.0]), positive) == 0.75


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40))
def test_auc_equals_its_definition_and_sklearn(rows):
    from sklearn.metrics import roc_auc_score

    score = torch.tensor([float(s) for s, _ in rows])
    positive = torch.tensor([p for _, p in rows])
    if positive.all() or not positive.any():
        with pytest.raises(ValueError, match="auc needs both classes"):
            auc(score, positive)
        return
    pairs = score[positive][:, None] - score[~positive]
    got = auc(score, positive)
    assert got == pytest.approx(float(((pairs > 0).double() + (pairs == 0) / 2).mean()), abs=1e-12)
    assert got == pytest.approx(float(roc_auc_score(positive.numpy(), score.numpy())), abs=1e-12)
    assert auc(score.exp(), positive) == got  # only the order counts
    assert auc(-score, positive) == pytest.approx(1 - got, abs=1e-12)


@pytest.mark.untyped
def test_auc_of_nonsense():
    with pytest.raises(TypeError, match=r"torch\.bool, but has torch\.int64"):
        auc(torch.ones(2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="score holds 1 NaN"):
        auc(torch.tensor([1.0, float("nan")]), torch.tensor([True, False]))
    with pytest.raises(ValueError, match=r"as many rows as score \(2\), but has 3"):
        auc(torch.ones(2), torch.tensor([True, False, True]))
