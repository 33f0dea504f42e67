r"""Unconstrained-features models: the last layers of a network, over features that are parameters themselves.

    f = (1/2N) |W_L s(... s(W_1 H)) + b 1^T - Y|_F^2 + sum_l lambda_l/2 |W_l|^2 + lambda_0/2 |H|^2 + lambda_b/2 |b|^2

for K classes with n samples each, N = K n, Y one-hot. ``layers=1`` is the plain model W H, ``layers=2`` the extended
one W_2 s(W_1 H), with s the identity or a ReLU. Features are rows here, (N, d), as everywhere in torch; the papers
write them as columns.

Source: Zhou, Li, Ding, You, Qu, Zhu, *On the Optimization Landscape of Neural Collapse under MSE Loss*, ICML 2022;
Tirer, Bruna, *Extended Unconstrained Features Model for Exploring Deep Neural Collapse*, ICML 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchstone._checks import check_float, check_int

__all__ = ["UnconstrainedFeatureModel"]


class UnconstrainedFeatureModel(nn.Module):
    r"""One unconstrained-features model, or ``seeds`` of them in one tensor each.

    f = (1/2N) |W_L s(... s(W_1 H)) + b 1^T - Y|^2 + sum_l lambda_l/2 |factor l|^2 + lambda_b/2 |b|^2. There is no
    input: ``forward()`` gives the logits of all samples, class after class.

    Args:
        num_classes: K.
        per_class: n, samples of each class.
        dim: d, width of the features of every layer.
        layers: L, number of weights.
        nonlinearity: ``"relu"`` after each weight but the last, or ``None``. The free features H pass through none.
        bias: whether the last layer has one; it starts at zero.
        seeds: how many models to stack; ``None`` is one, without the leading dimension.
        init_std: the start of H and the weights is normal with this standard deviation.
        generator: source of the start; a sequence gives each seed its own.
        dtype: of the parameters; by default torch's own.

    Attributes:
        free: H, (*s, N, d).
        weights: W_1, ..., W_L: (*s, d, d), the last one (*s, K, d).
        bias: (*s, K), or ``None``.
        labels: (N,) int64.

    Shapes:
        \*s is (seeds,) or nothing; ``forward()`` returns (*s, N, K).

    Cost:
        O(N d^2 L + N d K) a model; a stack is one batched product a layer.

    Raises:
        TypeError, ValueError: for sizes below 1 (``num_classes`` below 2), an unknown nonlinearity, or another number
            of generators than ``seeds``.

    Source:
        Zhou et al., ICML 2022; Tirer, Bruna, ICML 2022.

    Example:
        >>> model = UnconstrainedFeatureModel(4, 10, 6, layers=2, nonlinearity="relu", seeds=20)
        >>> model().shape, model.features(2).shape, model.loss([5e-3, 5e-3, 5e-3]).shape
        (torch.Size([20, 40, 4]), torch.Size([20, 40, 6]), torch.Size([20]))
    """

    labels: Tensor

    def __init__(
        self,
        num_classes: int,
        per_class: int,
        dim: int,
        layers: int = 1,
        nonlinearity: Literal["relu"] | None = None,
        bias: bool = False,
        *,
        seeds: int | None = None,
        init_std: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = check_int("num_classes", num_classes, 2)
        self.per_class = check_int("per_class", per_class, 1)
        self.dim = check_int("dim", dim, 1)
        self.layers = check_int("layers", layers, 1)
        if nonlinearity not in (None, "relu"):
            raise ValueError(f"nonlinearity must be 'relu' or None, but is {nonlinearity!r}")
        self.nonlinearity = nonlinearity
        stack = () if seeds is None else (check_int("seeds", seeds, 1),)
        check_float("init_std", init_std, 0)
        own = isinstance(generator, Sequence)
        if own and stack != (len(generator),):
            raise ValueError(f"generator must be one, or as many as seeds ({seeds}), but are {len(generator)}")

        def draw(*shape: int) -> nn.Parameter:
            if isinstance(generator, Sequence):
                start = torch.stack([torch.randn(shape, generator=one, dtype=dtype) for one in generator])
            else:
                start = torch.randn(*stack, *shape, generator=generator, dtype=dtype)
            return nn.Parameter(init_std * start)

        self.free = draw(num_classes * per_class, dim)
        self.weights = nn.ParameterList(
            [draw(num_classes if layer == layers else dim, dim) for layer in range(1, layers + 1)]
        )
        self.bias = nn.Parameter(torch.zeros(*stack, num_classes, dtype=dtype)) if bias else None
        self.register_buffer("labels", torch.arange(num_classes).repeat_interleave(per_class), persistent=False)

    def features(self, layer: int, *, pre_activation: bool = False) -> Float[Tensor, "*s n d"]:
        """What weight ``layer`` (1..L) sees: the free features for 1, ``s(W_1 H)`` for 2, and so on.

        With ``pre_activation`` that of layers 2.. before the nonlinearity.
        """
        check_int("layer", layer, 1, self.layers)
        h: Tensor = self.free
        for below in range(layer - 1):
            h = h @ self.weights[below].mT
            if self.nonlinearity and not (pre_activation and below == layer - 2):
                h = h.relu()
        return h

    def forward(self) -> Float[Tensor, "*s n classes"]:
        """Logits of all samples."""
        logits = self.features(self.layers) @ self.weights[-1].mT
        return logits if self.bias is None else logits + self.bias.unsqueeze(-2)

    def factors(self) -> list[Float[Tensor, "*s rows columns"]]:
        """W_L, ..., W_1 and H, in the order of ``weight_decays``."""
        return [*reversed(list(self.weights)), self.free]

    def loss(
        self, weight_decays: Sequence[float | Float[Tensor, " seeds"]], bias_decay: float | Tensor = 0.0
    ) -> Float[Tensor, "*s"]:
        """The objective f, one number a seed.

        These are the lambdas of the equation: give the optimiser no weight decay of its own.

        Args:
            weight_decays: lambdas from the last weight down to the features: (lambda_W, lambda_H) of the plain model,
                (lambda_2, lambda_1, lambda_0) of the extended one. Each a number, or a tensor (seeds,).
            bias_decay: lambda_b, likewise.

        Raises:
            ValueError: unless there is one lambda for each factor.
        """
        if len(weight_decays) != self.layers + 1:
            raise ValueError(
                f"weight_decays must hold {self.layers + 1} numbers (last weight to features), "
                f"but hold {len(weight_decays)}"
            )
        logits = self()
        # |Z - Y|^2 = |Z|^2 - 2 <Z, Y> + N, without the one-hot matrix
        rows = self.labels.expand(logits.shape[:-1]).unsqueeze(-1)
        error = logits.square().sum((-2, -1)) - 2 * logits.gather(-1, rows).sum((-2, -1)) + len(self.labels)
        loss = error / (2 * len(self.labels))
        for decay, factor in zip(weight_decays, self.factors(), strict=True):
            loss = loss + decay / 2 * factor.square().sum((-2, -1))
        return loss if self.bias is None else loss + bias_decay / 2 * self.bias.square().sum(-1)

    def extra_repr(self) -> str:
        """Sizes, as ``print(module)`` shows them."""
        return (
            f"num_classes={self.num_classes}, per_class={self.per_class}, dim={self.dim}, layers={self.layers}, "
            f"nonlinearity={self.nonlinearity!r}, bias={self.bias is not None}"
        )
