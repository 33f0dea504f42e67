"""Two small convolutional nets for images of any size: one pools, one strides (cheaper on a CPU)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchstone._checks import check_int
from torchstone.models.seeding import seeded

__all__ = ["SmallCNN", "StridedCNN", "as_images"]


def as_images(x: Float[Tensor, "n ..."], channels: int) -> Float[Tensor, "n channels h w"]:
    """Return ``x`` as a batch of images: as it is, with the channel axis it lacks, or folded into squares.

    Shapes:
        ``x`` (n, channels, h, w); (n, h, w) if there is one channel; or flat (n, channels * side * side).

    Raises:
        ValueError: if ``x`` is none of these.

    Example:
        >>> as_images(torch.zeros(5, 64), 1).shape
        torch.Size([5, 1, 8, 8])
    """
    if x.ndim == 4 and x.shape[1] == channels:
        return x
    if x.ndim == 3 and channels == 1:
        return x.unsqueeze(1)
    if x.ndim == 2:
        side = math.isqrt(x.shape[1] // channels)
        if side and channels * side * side == x.shape[1]:
            return x.reshape(x.shape[0], channels, side, side)
    raise ValueError(
        f"x must be images (n, {channels}, height, width) or flat square ones, but has shape {tuple(x.shape)}"
    )


class SmallCNN(nn.Module):
    """Two 3x3 convolutions with max-pooling, then one hidden layer: the classical small image net.

    Args:
        in_channels: channels of an image.
        num_classes: numbers in one output.
        width: channels of the first convolution; the second has twice as many, the hidden layer four times.
        generator: source of the initial weights; None is torch's global one.

    Shapes:
        ``x`` as :func:`as_images` takes it, at least 4 x 4; ``features(x)`` (n, 4 * width); returns (n, num_classes).

    Cost:
        At 28 x 28 and width 32: 4.0 million multiplications an image, 151 000 parameters.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if a size is below 1, or an input is no image of ``in_channels`` channels.

    Example:
        >>> SmallCNN(1, 10, generator=torch.Generator().manual_seed(0))(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, width: int = 32, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels, 1)
        self.num_features = 4 * check_int("width", width, 1)
        check_int("num_classes", num_classes, 1)
        with seeded(generator):
            self.body = nn.Sequential(
                nn.Conv2d(in_channels, width, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(width, 2 * width, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.AdaptiveAvgPool2d(4),
                nn.Flatten(),
                nn.Linear(32 * width, self.num_features),
                nn.ReLU(),
            )
            self.head = nn.Linear(self.num_features, num_classes)

    def features(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """Return what the head sees: the hidden layer."""
        return self.body(as_images(x, self.in_channels))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        """Return the logits."""
        return self.head(self.features(x))


class StridedCNN(nn.Module):
    """Three 3x3 convolutions of stride 2 with batch normalisation, then the mean over the image.

    Args:
        in_channels: channels of an image.
        num_classes: numbers in one output.
        width: channels of the first convolution; each further one has twice as many.
        generator: source of the initial weights; None is torch's global one.

    Shapes:
        ``x`` as :func:`as_images` takes it; ``features(x)`` (n, 4 * width); returns (n, num_classes).

    Cost:
        At 28 x 28 and width 32: 2.1 million multiplications an image, 94 000 parameters.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if a size is below 1, or an input is no image of ``in_channels`` channels.

    Example:
        >>> StridedCNN(3, 10, generator=torch.Generator().manual_seed(0))(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, width: int = 32, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels, 1)
        self.num_features = 4 * check_int("width", width, 1)
        check_int("num_classes", num_classes, 1)
        layers: list[nn.Module] = []
        with seeded(generator):
            for fan_in, fan_out in ((in_channels, width), (width, 2 * width), (2 * width, 4 * width)):
                layers += [
                    nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(fan_out),
                    nn.ReLU(),
                ]
            self.body = nn.Sequential(*layers)
            self.head = nn.Linear(self.num_features, num_classes)

    def features(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """Return what the head sees: the last feature map, averaged over the image."""
        return self.body(as_images(x, self.in_channels)).mean((2, 3))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        """Return the logits."""
        return self.head(self.features(x))
