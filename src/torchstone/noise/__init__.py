"""Learning with noisy labels: losses that keep a network from memorising wrong labels."""

from torchstone.noise.elr import EarlyLearningRegularization, early_learning_penalty, updated_targets
from torchstone.noise.gce import GeneralizedCrossEntropy, generalized_cross_entropy
from torchstone.noise.sop import SparseOverparamLoss, sparse_overparam_loss
from torchstone.noise.sop_rates import Rates, suggest_rates

__all__ = [
    "EarlyLearningRegularization",
    "GeneralizedCrossEntropy",
    "Rates",
    "SparseOverparamLoss",
    "early_learning_penalty",
    "generalized_cross_entropy",
    "sparse_overparam_loss",
    "suggest_rates",
    "updated_targets",
]
