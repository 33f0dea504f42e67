"""Heteroscedastic softmax: class scores with Gaussian noise whose size and shape depend on the input.

A label may be uncertain here and clear there, and the errors of two classes may go together. So the scores are random,
with a covariance that the network predicts, and the class probabilities are the mean softmax over draws of them.

Source: Collier, Mustafa, Kokiopoulou, Jenatton, Berent, *Correlated Input-Dependent Label Noise in Large-Scale Image
Classification*, CVPR 2021. As there, softmax with a temperature stands for the argmax of the scores.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from torchstone._checks import check_float, check_int

__all__ = ["HeteroscedasticSoftmax"]

MIN_SCALE = 1e-3  # of the independent noise: at 0 the gradient of its scale would vanish


class HeteroscedasticSoftmax(nn.Module):
    r"""Log-probabilities of noisy class scores, from the outputs of one linear layer.

    ``u = mu + V z + d * e`` with standard normal ``z`` (rank) and ``e`` (classes), so that ``u`` has covariance
    ``V V' + diag(d^2)``; ``p = mean over draws of softmax(u / temperature)``, and ``log p`` is returned. The linear
    layer before it gives ``mu``, then the scale ``d`` before a softplus, then ``V``: :attr:`num_outputs` numbers.

    Cross entropy takes ``log p`` in the place of logits. The draws are fresh at each call, in evaluation too.

    Args:
        num_classes: Number C of classes.
        rank: Number of columns of V: 6 for CIFAR-10, 15 for ImageNet in the paper; 0 for independent noise.
        temperature: Smoothness of the choice: 1.3 for CIFAR-10, 1.5 for ImageNet in TRAM's experiments.
        samples: Draws for one mean. TRAM's experiments take 10 000; time and memory grow with it.
        generator: Source of the draws.

    Shapes: ``parameters`` (..., num_outputs) float; returns (..., C) float, at least float32.
    Cost: O(samples x rows x C x rank) time, O(samples x rows x C) memory.
    Raises: TypeError or ValueError on an argument out of range; ValueError on another number of columns.
    Source: Collier et al., *Correlated Input-Dependent Label Noise*, CVPR 2021.

    Example:
        >>> softmax = HeteroscedasticSoftmax(3, rank=2, samples=50, generator=torch.Generator().manual_seed(0))
        >>> layer = nn.Linear(4, softmax.num_outputs)
        >>> softmax(layer(torch.ones(5, 4))).exp().sum(1)
        tensor([1.0000, 1.0000, 1.0000, 1.0000, 1.0000], grad_fn=<SumBackward1>)
    """

    def __init__(
        self,
        num_classes: int,
        *,
        rank: int = 6,
        temperature: float = 1.3,
        samples: int = 1000,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = check_int("num_classes", num_classes, 2)
        self.rank = check_int("rank", rank, 0)
        self.temperature = check_float("temperature", temperature, 0, open_low=True)
        self.samples = check_int("samples", samples, 1)
        self.generator = generator

    @property
    def num_outputs(self) -> int:
        """How many numbers the linear layer must give: C x (2 + rank)."""
        return self.num_classes * (2 + self.rank)

    def forward(self, parameters: Float[Tensor, "*rows outputs"]) -> Float[Tensor, "*rows classes"]:
        """Return the log-probabilities."""
        if not parameters.is_floating_point():
            raise TypeError(f"parameters must be floating point, but have dtype {parameters.dtype}")
        if parameters.shape[-1:] != (self.num_outputs,):
            raise ValueError(
                f"parameters must have {self.num_outputs} columns (num_classes x (2 + rank)), but have shape "
                f"{tuple(parameters.shape)}"
            )
        parameters = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
        c = self.num_classes
        mean, scale, factor = parameters.split([c, c, c * self.rank], -1)
        scores = mean + (F.softplus(scale) + MIN_SCALE) * self._normal(mean, (*mean.shape[:-1], c))
        if self.rank:
            z = self._normal(mean, (*mean.shape[:-1], self.rank))
            # One matrix product a row, over all draws at once.
            moved = factor.unflatten(-1, (c, self.rank)) @ z.movedim(0, -1)
            scores = scores + moved.movedim(-1, 0)
        log_p = (scores / self.temperature).log_softmax(-1)
        return log_p.logsumexp(0) - math.log(self.samples)

    def extra_repr(self) -> str:
        """Arguments, as ``print(module)`` shows them."""
        return f"{self.num_classes}, rank={self.rank}, temperature={self.temperature:g}, samples={self.samples}"

    def _normal(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        device = like.device if self.generator is None else self.generator.device
        draws = torch.randn(self.samples, *shape, generator=self.generator, device=device, dtype=like.dtype)
        return draws.to(like.device)
