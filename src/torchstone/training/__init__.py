"""One supervised loop, evaluation, probes on frozen features, checkpoints."""

from torchstone.training.checkpoint import Checkpoint, FileCheckpoint
from torchstone.training.evaluate import accuracy, auc, feature_matrix, predict
from torchstone.training.features import LayerFeatures, capture, layer_features, pooled
from torchstone.training.loop import Batch, Callback, DivergedError, EpochEnd, History, Loss, fit, supervised
from torchstone.training.probes import Probe, knn_probe, linear_probe

__all__ = [
    "Batch",
    "Callback",
    "Checkpoint",
    "DivergedError",
    "EpochEnd",
    "FileCheckpoint",
    "History",
    "LayerFeatures",
    "Loss",
    "Probe",
    "accuracy",
    "auc",
    "capture",
    "feature_matrix",
    "fit",
    "knn_probe",
    "layer_features",
    "linear_probe",
    "pooled",
    "predict",
    "supervised",
]
