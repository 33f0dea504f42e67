"""Small reference backbones. Each has ``features(x)``, ``num_features`` and ``forward(x) = head(features(x))``."""

from torchstone.models.build import MODELS, build
from torchstone.models.cnn import SmallCNN, StridedCNN, as_images
from torchstone.models.mlp import MLP
from torchstone.models.resnet import ResNet, resnet18, resnet20
from torchstone.models.seeding import initialize_, seeded

__all__ = [
    "MLP",
    "MODELS",
    "ResNet",
    "SmallCNN",
    "StridedCNN",
    "as_images",
    "build",
    "initialize_",
    "resnet18",
    "resnet20",
    "seeded",
]
