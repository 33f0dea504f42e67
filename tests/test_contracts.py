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

from torchstone import catalogue, noise
from torchstone.testing import check_docstring, check_loss

N, C = 12, 4


def _sop(**options: Any) -> noise.SparseOverparamLoss:
    return noise.SparseOverparamLoss(N, C, generator=torch.Generator().manual_seed(0), **options)


def _elr() -> noise.EarlyLearningRegularization:
    return noise.EarlyLearningRegularization(N, C)


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
}
READY = [row for row in catalogue.papers() if row.status == "ready"]
OBJECTS = sorted({name for row in READY for name in (*row.objects, *row.rivals)})


def _find(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def test_every_public_object_has_its_contract() -> None:
    assert sorted(CONTRACTS) == OBJECTS


@pytest.mark.parametrize("name", OBJECTS)
def test_public_objects_are_documented(name: str) -> None:
    found = _find(name)
    check_docstring(
        found,
        require=("Shapes", "Cost", "Raises", "Source")
        if name != "torchstone.noise.suggest_rates"
        else ("Cost", "Raises", "Source"),
    )
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
        assert package == f"torchstone.{row.field}"
        assert attribute in importlib.import_module(package).__all__
