"""Neural collapse: measures, losses, fixed classifiers, and the models in which it is a theorem."""

from torchstone.dynamics.neural_collapse.etf import ETFClassifier, simplex_etf
from torchstone.dynamics.neural_collapse.layerwise import layerwise_nc
from torchstone.dynamics.neural_collapse.losses import MSEClassificationLoss, RescaledMSELoss
from torchstone.dynamics.neural_collapse.meter import FeatureHook, NeuralCollapseMeter
from torchstone.dynamics.neural_collapse.metrics import NCMetrics, nc_metrics
from torchstone.dynamics.neural_collapse.optimum import UFMOptimum, extended_ufm_optimum, ufm_optimum
from torchstone.dynamics.neural_collapse.ufm import UnconstrainedFeatureModel

__all__ = [
    "ETFClassifier",
    "FeatureHook",
    "MSEClassificationLoss",
    "NCMetrics",
    "NeuralCollapseMeter",
    "RescaledMSELoss",
    "UFMOptimum",
    "UnconstrainedFeatureModel",
    "extended_ufm_optimum",
    "layerwise_nc",
    "nc_metrics",
    "simplex_etf",
    "ufm_optimum",
]
