"""Contract checks for torch objects, ours and yours: call them from any test."""

from torchstone.testing.attacks import check_attack
from torchstone.testing.contracts import (
    check_autocast,
    check_compiles,
    check_contiguity,
    check_deepcopy,
    check_device_free,
    check_docstring,
    check_empty,
    check_generator,
    check_refuses,
    check_repeatable,
    check_state_dict,
    run_checks,
)
from torchstone.testing.data import check_dataset, check_sampler
from torchstone.testing.losses import check_loss
from torchstone.testing.modules import check_module
from torchstone.testing.optimizers import check_optimizer

__all__ = [
    "check_attack",
    "check_autocast",
    "check_compiles",
    "check_contiguity",
    "check_dataset",
    "check_deepcopy",
    "check_device_free",
    "check_docstring",
    "check_empty",
    "check_generator",
    "check_loss",
    "check_module",
    "check_optimizer",
    "check_refuses",
    "check_repeatable",
    "check_sampler",
    "check_state_dict",
    "run_checks",
]
