"""Residual nets for 32 x 32 images: the CIFAR form of He et al. (no 7x7 stem, no first pooling).

:func:`resnet20` is the paper's own CIFAR net (section 4.2: widths 16-32-64, shortcuts without parameters, "option A").
:func:`resnet18` is the ImageNet net with a 3x3 stem in place of the 7x7 one and its pooling, as the field runs it on
CIFAR; its shortcuts are 1x1 convolutions ("option B"). Weights start as in He et al. 2015, normal with fan-out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone._checks import check_int, check_one_of
from torchstone.models.cnn import as_images
from torchstone.models.seeding import seeded

__all__ = ["ResNet", "resnet18", "resnet20"]


def resnet20(in_channels: int = 3, num_classes: int = 10, *, generator: torch.Generator | None = None) -> ResNet:
    """Return the 20-layer CIFAR net: 269 722 parameters at 3 channels and 10 classes, 64 features."""
    return ResNet(in_channels, num_classes, widths=(16, 32, 64), blocks=3, shortcut="pad", generator=generator)


def resnet18(in_channels: int = 3, num_classes: int = 10, *, generator: torch.Generator | None = None) -> ResNet:
    """Return the 18-layer net with a 3x3 stem: 11 173 962 parameters at 3 channels and 10 classes, 512 features."""
    return ResNet(in_channels, num_classes, widths=(64, 128, 256, 512), blocks=2, shortcut="conv", generator=generator)


class ResNet(nn.Module):
    """Residual net of basic blocks ``h + conv(relu(conv(h)))``; each stage after the first halves the image.

    Args:
        in_channels: channels of an image.
        num_classes: numbers in one output.
        widths: channels of each stage.
        blocks: basic blocks in each stage.
        shortcut: where a block changes the shape, ``"pad"`` subsamples and pads with zero channels, ``"conv"`` learns
            a 1x1 convolution.
        generator: source of the initial weights; None is torch's global one.

    Shapes:
        ``x`` as :func:`~torchstone.models.as_images` takes it; ``features(x)`` (n, widths[-1]); returns
        (n, num_classes).

    Cost:
        At 32 x 32, in multiplications an image: ``resnet20`` 41 million, ``resnet18`` 556 million.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if a size is below 1, ``shortcut`` is unknown, or an input is no image of ``in_channels`` channels.

    Source:
        He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016, section 4.2.

    Example:
        >>> net = resnet20(generator=torch.Generator().manual_seed(0))
        >>> sum(p.numel() for p in net.parameters())
        269722
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        widths: Sequence[int] = (16, 32, 64),
        blocks: int = 3,
        shortcut: str = "pad",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels, 1)
        check_int("num_classes", num_classes, 1)
        check_int("blocks", blocks, 1)
        check_one_of("shortcut", shortcut, ("pad", "conv"))
        widths = [check_int("widths", width, 1) for width in widths]
        if not widths:
            raise ValueError("widths must name at least 1 stage, but is empty")
        self.num_features = widths[-1]
        with seeded(generator):
            layers: list[nn.Module] = [_conv(in_channels, widths[0], 1), nn.BatchNorm2d(widths[0]), nn.ReLU()]
            fan_in = widths[0]
            for stage, width in enumerate(widths):
                for block in range(blocks):
                    layers.append(_BasicBlock(fan_in, width, 2 if stage and not block else 1, shortcut))
                    fan_in = width
            self.body = nn.Sequential(*layers)
            self.head = nn.Linear(self.num_features, num_classes)
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every convolution as He et al. do: normal with variance 2 / fan-out."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """Return what the head sees: the last feature map, averaged over the image."""
        return self.body(as_images(x, self.in_channels)).mean((2, 3))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        """Return the logits."""
        return self.head(self.features(x))


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, fan_in: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(fan_in, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = _conv(width, width, 1), nn.BatchNorm2d(width)
        self.shortcut: nn.Module
        if stride == 1 and fan_in == width:
            self.shortcut = nn.Identity()
        elif shortcut == "pad":
            self.shortcut = _PadShortcut(stride, width - fan_in)
        else:
            self.shortcut = nn.Sequential(nn.Conv2d(fan_in, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class _PadShortcut(nn.Module):
    """Take every ``stride``-th pixel and add ``extra`` channels of zeros, half of them in front."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, extra

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))


def _conv(fan_in: int, fan_out: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False)
