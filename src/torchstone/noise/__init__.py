"""Learning with noisy labels: losses that keep a network from memorising wrong labels."""

from torchstone.data.annotators import AnnotatorDataset
from torchstone.noise.elr import EarlyLearningRegularization, early_learning_penalty, updated_targets
from torchstone.noise.gamma import gamma_kl, sample_gamma
from torchstone.noise.gce import GeneralizedCrossEntropy, generalized_cross_entropy
from torchstone.noise.heteroscedastic import HeteroscedasticSoftmax
from torchstone.noise.knn_prior import knn_prior
from torchstone.noise.mcd import MinCovDetTied
from torchstone.noise.npc import NoisyPredictionCalibrator
from torchstone.noise.pi_head import PIHead
from torchstone.noise.rog import RobustGenerativeClassifier, gaussian_classifier
from torchstone.noise.rog_layers import hidden_layers
from torchstone.noise.sop import SparseOverparamLoss, sparse_overparam_loss
from torchstone.noise.sop_rates import Rates, suggest_rates
from torchstone.noise.tram import TRAM, TRAMLoss, TRAMOutput, marginalize
from torchstone.noise.transition import calibrate

__all__ = [
    "TRAM",
    "AnnotatorDataset",
    "EarlyLearningRegularization",
    "GeneralizedCrossEntropy",
    "HeteroscedasticSoftmax",
    "MinCovDetTied",
    "NoisyPredictionCalibrator",
    "PIHead",
    "Rates",
    "RobustGenerativeClassifier",
    "SparseOverparamLoss",
    "TRAMLoss",
    "TRAMOutput",
    "calibrate",
    "early_learning_penalty",
    "gamma_kl",
    "gaussian_classifier",
    "generalized_cross_entropy",
    "hidden_layers",
    "knn_prior",
    "marginalize",
    "sample_gamma",
    "sparse_overparam_loss",
    "suggest_rates",
    "updated_targets",
]
