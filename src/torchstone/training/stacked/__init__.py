"""Many seeds in one pass: models of one architecture stacked along a leading axis, their optimisers and their loop."""

from torchstone.training.stacked.front import stacking_speedup, train_stacked
from torchstone.training.stacked.loop import StackedCallback, StackedEpochEnd, StackedHistory, fit_stacked
from torchstone.training.stacked.module import StackedModule, stack
from torchstone.training.stacked.optim import SGD, AdamW, clip_grad_norm_, global_norm, per_seed

__all__ = [
    "SGD",
    "AdamW",
    "StackedCallback",
    "StackedEpochEnd",
    "StackedHistory",
    "StackedModule",
    "clip_grad_norm_",
    "fit_stacked",
    "global_norm",
    "per_seed",
    "stack",
    "stacking_speedup",
    "train_stacked",
]
