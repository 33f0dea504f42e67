"""The contract checks of `torchstone.testing`, over every public object of the papers that are ready.

An object of a new paper needs one line in `CONTRACTS`; leaving it out fails here.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from torchstone import catalogue, dynamics, noise
from torchstone.models import MLP
from torchstone.testing import check_dataset, check_docstring, check_loss, check_module, check_optimizer

N, C = 12, 4


def _sop(**options: Any) -> noise.SparseOverparamLoss:
    return noise.SparseOverparamLoss(N, C, generator=torch.Generator().manual_seed(0), **options)


def _elr() -> noise.EarlyLearningRegularization:
    return noise.EarlyLearningRegularization(N, C)


def _pi_head() -> noise.PIHead:
    return noise.PIHead(5, 2, C, width=6, residual=False, generator=torch.Generator().manual_seed(0))


def _tram() -> noise.TRAM:
    body = torch.nn.Linear(3, 5)
    return noise.TRAM(body, 5, 0, C, width=6, pi_embedding=torch.nn.Embedding(7, 6))


def _softmax() -> noise.HeteroscedasticSoftmax:
    return noise.HeteroscedasticSoftmax(C, rank=2, samples=20)


class _BothHeads(noise.TRAMLoss):
    """The loss of two heads, of which the second has twice the logits of the first."""

    __doc__ = noise.TRAMLoss.__doc__

    def forward(self, logits: Any, target: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward((logits, 2 * logits), target)


def _annotators() -> noise.AnnotatorDataset:
    answers = torch.arange(2 * N).view(N, 2) % (C + 1) - 1
    inputs = torch.utils.data.TensorDataset(torch.arange(N), torch.zeros(N))
    return noise.AnnotatorDataset(inputs, answers, torch.arange(2 * N).view(N, 2))


def _rog() -> noise.RobustGenerativeClassifier:
    generator = torch.Generator().manual_seed(0)
    net = MLP(6, C, hidden=(8,), generator=generator)
    x = torch.randn(80, 6, generator=generator)
    rog = noise.RobustGenerativeClassifier(net, "body", C, generator=generator)
    return rog.fit([(x, torch.arange(80) % C)])


def _npc() -> noise.NoisyPredictionCalibrator:
    generator = torch.Generator().manual_seed(0)
    net = MLP(3, C, hidden=(5,), generator=generator)
    return noise.NoisyPredictionCalibrator.from_classifier(net, generator=generator)


def _patch_cnn() -> dynamics.MarginPatchCNN:
    return dynamics.MarginPatchCNN(6, 3, generator=torch.Generator().manual_seed(0))


def _ufm() -> dynamics.UnconstrainedFeatureModel:
    generator = torch.Generator().manual_seed(0)
    return dynamics.UnconstrainedFeatureModel(C, 3, 5, layers=2, nonlinearity="relu", bias=True, generator=generator)


def _diagonal() -> dynamics.DiagonalLinearNetwork:
    network = dynamics.DiagonalLinearNetwork(6, alpha=1.0)
    torch.nn.init.constant_(network.layers, 0.5)  # at the start half of the gradients are zero
    return network


def _whitening() -> dynamics.Whitening:
    return dynamics.Whitening("pca", center=True).fit(torch.randn(9, 3, generator=torch.Generator().manual_seed(0)))


# Object -> the check of its kind, beyond the docstring; () for plain functions that the losses are made of.
CONTRACTS: dict[str, tuple[Callable[[], None], ...]] = {
    "torchstone.noise.SparseOverparamLoss": (
        partial(check_loss, _sop, C, with_index=True, compiles=True),
        partial(check_loss, partial(_sop, variant="paper", lambda_balance=0.1), C, with_index=True, compiles=True),
    ),
    "torchstone.noise.GeneralizedCrossEntropy": (
        partial(check_loss, noise.GeneralizedCrossEntropy, C, compiles=True),
        partial(check_loss, partial(noise.GeneralizedCrossEntropy, k=0.5), C),
    ),
    "torchstone.noise.EarlyLearningRegularization": (partial(check_loss, _elr, C, with_index=True, compiles=True),),
    "torchstone.noise.generalized_cross_entropy": (partial(check_loss, lambda: noise.generalized_cross_entropy, C),),
    "torchstone.noise.sparse_overparam_loss": (),
    "torchstone.noise.suggest_rates": (),
    "torchstone.noise.early_learning_penalty": (),
    "torchstone.noise.TRAM": (
        partial(check_module, _tram, [torch.ones(8, 3), torch.arange(16).view(8, 2) % 8 - 1], compiles=True),
    ),
    # Its messages name targets, and what an error must say is tested beside it.
    "torchstone.noise.TRAMLoss": (
        partial(check_loss, partial(_BothHeads, distillation=0.5), C, compiles=True, skip=["target"]),
    ),
    "torchstone.noise.PIHead": (partial(check_module, _pi_head, [torch.ones(8, 5), torch.ones(8, 3, 2)]),),
    # Without parameters it has no gradient of them under autocast.
    "torchstone.noise.HeteroscedasticSoftmax": (
        partial(check_module, _softmax, [torch.ones(8, 4 * C)], skip=["autocast"]),
    ),
    "torchstone.noise.AnnotatorDataset": (partial(check_dataset, _annotators(), skip=["length"]),),
    "torchstone.noise.marginalize": (),
    # The decoder takes part in training alone.
    # The network's own last layer is not used, so it has no gradient.
    "torchstone.noise.RobustGenerativeClassifier": (
        partial(check_module, _rog, [torch.linspace(-2, 2, 30).view(5, 6)], skip=["gradients"]),
    ),
    "torchstone.noise.MinCovDetTied": (),
    "torchstone.noise.gaussian_classifier": (),
    "torchstone.noise.hidden_layers": (),
    "torchstone.noise.NoisyPredictionCalibrator": (
        partial(check_module, _npc, [torch.linspace(-2, 2, 24).view(8, 3)], compiles=True, skip=["gradients"]),
    ),
    "torchstone.noise.calibrate": (),
    "torchstone.noise.gamma_kl": (),
    "torchstone.noise.knn_prior": (),
    "torchstone.noise.sample_gamma": (),
    "torchstone.dynamics.ETFClassifier": (
        partial(check_module, partial(dynamics.ETFClassifier, 6, C), [torch.ones(5, 6)], compiles=True),
    ),
    "torchstone.dynamics.FeatureHook": (),
    "torchstone.dynamics.MSEClassificationLoss": (
        partial(check_loss, partial(dynamics.MSEClassificationLoss, C), C, compiles=True),
    ),
    "torchstone.dynamics.NeuralCollapseMeter": (),
    "torchstone.dynamics.RescaledMSELoss": (
        partial(check_loss, partial(dynamics.RescaledMSELoss, C, 5.0, 3.0), C, compiles=True),
    ),
    # It has no input: its features are parameters.
    "torchstone.dynamics.UnconstrainedFeatureModel": (
        partial(check_module, _ufm, [], skip=["contiguity", "empty", "autocast"], compiles=True),
    ),
    "torchstone.dynamics.extended_ufm_optimum": (),
    "torchstone.dynamics.layerwise_nc": (),
    "torchstone.dynamics.nc_metrics": (),
    "torchstone.dynamics.simplex_etf": (),
    "torchstone.dynamics.ufm_optimum": (),
    "torchstone.dynamics.DampenedSGD": (
        partial(check_optimizer, partial(dynamics.DampenedSGD, lr=0.1), refuses={"lr": -1.0, "momentum": 1.0}),
    ),
    "torchstone.dynamics.MarginPatchCNN": (
        partial(check_module, _patch_cnn, [torch.linspace(-1, 1, 8 * 2 * 6).view(8, 2, 6)], compiles=True),
    ),
    "torchstone.dynamics.MarginPatchDataset": (
        partial(check_dataset, dynamics.MarginPatchDataset(N, generator=torch.Generator().manual_seed(0))),
    ),
    "torchstone.dynamics.feature_alignment": (),
    "torchstone.dynamics.group_accuracy": (),
    "torchstone.dynamics.margin_parts": (),
    "torchstone.dynamics.patch_gradient": (),
    "torchstone.dynamics.patch_logits": (),
    "torchstone.dynamics.signal_rate": (),
    "torchstone.dynamics.small_margin_transform": (),
    "torchstone.dynamics.DiagonalLinearNetwork": (
        partial(check_module, _diagonal, [torch.linspace(-2, 2, 30).view(5, 6).double()], compiles=True),
    ),
    "torchstone.dynamics.SparseRegression": (
        partial(check_dataset, dynamics.SparseRegression(5, 9, 2, generator=torch.Generator().manual_seed(0))),
    ),
    "torchstone.dynamics.basis_pursuit": (),
    "torchstone.dynamics.critical_step": (),
    "torchstone.dynamics.diagonal_descent": (),
    "torchstone.dynamics.flow_residual": (),
    "torchstone.dynamics.gradient_flow_limit": (),
    "torchstone.dynamics.hessian_max_eigenvalue": (),
    "torchstone.dynamics.min_l2_norm": (),
    "torchstone.dynamics.sharpness": (),
    "torchstone.dynamics.stability_certificate": (),
    "torchstone.dynamics.stability_threshold": (),
    "torchstone.dynamics.weighted_l1": (),
    "torchstone.dynamics.DeepLinear": (
        partial(check_module, partial(dynamics.DeepLinear, [3, 1, 2]), [torch.ones(8, 3)], compiles=True),
    ),
    "torchstone.dynamics.alignment": (),
    "torchstone.dynamics.balance_": (),
    "torchstone.dynamics.balanced_init_": (),
    "torchstone.dynamics.escape_time": (),
    "torchstone.dynamics.gradient_flow": (),
    "torchstone.dynamics.predict_limit": (),
    "torchstone.dynamics.predicted_rates": (),
    "torchstone.dynamics.rank_one_flow": (),
    "torchstone.dynamics.target_matrix": (),
    "torchstone.dynamics.LinearPath": (),
    "torchstone.dynamics.adversarial_init": (),
    "torchstone.dynamics.evaluate_stacked": (),
    "torchstone.dynamics.interpolate_state_dict": (),
    "torchstone.dynamics.layerwise_paths": (),
    "torchstone.dynamics.partial_init": (),
    "torchstone.dynamics.path_metrics": (),
    "torchstone.dynamics.plot_path": (),
    "torchstone.dynamics.scaled_init": (),
    "torchstone.dynamics.NewtonLinear": (),
    "torchstone.dynamics.RegularizedGaussNewton": (),
    # Without parameters it has no gradient of them under autocast.
    "torchstone.dynamics.Whitening": (
        partial(check_module, _whitening, [torch.linspace(-2, 2, 24).view(8, 3)], compiles=True, skip=["autocast"]),
    ),
    "torchstone.dynamics.gram": (),
    "torchstone.dynamics.information_fraction": (),
    "torchstone.bench.seeds.Seeds": (),
    "torchstone.bench.statistics.SequentialComparison": (),
    "torchstone.bench.statistics.adjust": (),
    "torchstone.bench.statistics.claims_better": (),
    "torchstone.bench.statistics.compare": (),
    "torchstone.bench.statistics.error_rates": (),
    "torchstone.bench.statistics.kendall_tau": (),
    "torchstone.bench.statistics.normal_scores": (),
    "torchstone.bench.statistics.probability_of_outperforming": (),
    "torchstone.bench.statistics.rank_methods": (),
    "torchstone.bench.statistics.ranking_instability": (),
    "torchstone.bench.statistics.sample_size": (),
    "torchstone.bench.statistics.variance_by_source": (),
}
# Blocks that a docstring may lack: there are no arrays, or nothing is computed.
SPARED = {
    "torchstone.noise.hidden_layers": {"Shapes", "Source"},
    "torchstone.noise.suggest_rates": {"Shapes"},
    "torchstone.dynamics.FeatureHook": {"Shapes", "Cost", "Source"},
    "torchstone.dynamics.plot_path": {"Source"},
    "torchstone.bench.seeds.Seeds": {"Shapes", "Cost", "Source"},
    "torchstone.bench.statistics.SequentialComparison": {"Shapes"},
    "torchstone.bench.statistics.error_rates": {"Shapes"},
    "torchstone.bench.statistics.sample_size": {"Shapes"},
}
READY = [row for row in catalogue.papers() if row.status == "ready"]
OBJECTS = sorted({name for row in READY for name in (*row.objects, *row.rivals)})


def _find(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def test_every_public_object_has_its_contract() -> None:
    assert CONTRACTS.keys() >= set(OBJECTS)
    assert CONTRACTS.keys() <= {name for row in catalogue.papers() for name in (*row.objects, *row.rivals)}
    assert CONTRACTS.keys() >= SPARED.keys()


@pytest.mark.parametrize("name", CONTRACTS)
def test_public_objects_are_documented(name: str) -> None:
    found = _find(name)
    blocks = ("Shapes", "Cost", "Raises", "Source")
    check_docstring(found, require=[block for block in blocks if block not in SPARED.get(name, ())])
    assert ">>>" in (inspect.getdoc(found) or ""), f"{name} has no example"
    assert found.__name__ in importlib.import_module(found.__module__).__all__


@pytest.mark.untyped
@pytest.mark.parametrize(("name", "check"), [(name, check) for name, checks in CONTRACTS.items() for check in checks])
def test_public_objects_keep_their_contracts(name: str, check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("row", READY, ids=lambda row: row.slug)
def test_what_is_ready_is_exported_by_its_field(row: catalogue.Paper) -> None:
    for name in (*row.objects, *row.rivals):
        package, _, attribute = name.rpartition(".")
        field = f"torchstone.{row.field}"
        assert package == field or (row.field == "bench" and package.startswith(f"{field}."))
        assert attribute in importlib.import_module(package).__all__
