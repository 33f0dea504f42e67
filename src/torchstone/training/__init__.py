"""One supervised loop, evaluation, probes on frozen features, checkpoints."""

from torchstone.training.checkpoint import Checkpoint, FileCheckpoint
from torchstone.training.curvature import GGNOperator, HessianOperator, TraceEstimate, hessian_max_eigenvalue
from torchstone.training.evaluate import accuracy, auc, feature_matrix, predict
from torchstone.training.features import LayerFeatures, capture, layer_features, pooled
from torchstone.training.krylov import Solution, conjugate_gradient, top_eigenvalues
from torchstone.training.loop import Batch, Callback, DivergedError, EpochEnd, History, Loss, fit, supervised
from torchstone.training.probes import Probe, knn_probe, linear_probe
from torchstone.training.stacked import (
    StackedCallback,
    StackedEpochEnd,
    StackedHistory,
    StackedModule,
    fit_stacked,
    stack,
    stacking_speedup,
    train_stacked,
)

__all__ = [
    "Batch",
    "Callback",
    "Checkpoint",
    "DivergedError",
    "EpochEnd",
    "FileCheckpoint",
    "GGNOperator",
    "HessianOperator",
    "History",
    "LayerFeatures",
    "Loss",
    "Probe",
    "Solution",
    "StackedCallback",
    "StackedEpochEnd",
    "StackedHistory",
    "StackedModule",
    "TraceEstimate",
    "accuracy",
    "auc",
    "capture",
    "conjugate_gradient",
    "feature_matrix",
    "fit",
    "fit_stacked",
    "hessian_max_eigenvalue",
    "knn_probe",
    "layer_features",
    "linear_probe",
    "pooled",
    "predict",
    "stack",
    "stacking_speedup",
    "supervised",
    "top_eigenvalues",
    "train_stacked",
]
