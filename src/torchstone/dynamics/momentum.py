r"""Why momentum can generalise better: a network that fits a faint feature by growing it, or by memorising noise.

The network f(X) = sum_r sum_j <w_r, X_j>^3 is trained by gradient descent on the logistic loss, on data of
:class:`~torchstone.dynamics.MarginPatchDataset`. Once the large margins are fitted, their gradients vanish, and with
them the growth of C = sum_r <w_r, w*>^3. What gradient descent then fits are the small margins, by memorising their
noise. Momentum still moves along the gradients of before: C overshoots, until beta^3 C alone is enough for the small
margins, those of the test set too.

The functions take weights and data with leading axes, so that many seeds train in one pass. The optimiser is
:class:`~torchstone.dynamics.DampenedSGD`.

Source: Jelassi and Li, *Towards understanding how momentum improves generalization in deep learning*, ICML 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchstone._checks import check_float, check_int

__all__ = [
    "MarginParts",
    "MarginPatchCNN",
    "feature_alignment",
    "margin_parts",
    "patch_gradient",
    "patch_logits",
    "signal_rate",
]

Activation = Callable[[Tensor], Tensor]


def _cubic(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return z * z * z


def patch_logits(
    weight: Float[Tensor, "*seeds m d"], x: Float[Tensor, "*seeds n p d"], *, activation: Activation = _cubic
) -> Float[Tensor, "*seeds n"]:
    """f(X) = sum_r sum_j activation(<w_r, X_j>): positive says class 1.

    Args:
        weight: w_r.
        x: the patches of each example.
        activation: elementwise; z^3 by default.

    Shapes: leading axes, if any, are seeds, each with weights and data of its own.
    Cost: 2 n p d m operations a seed.
    Raises: ValueError if shapes disagree.
    Source: Jelassi and Li, ICML 2022, the one-hidden-layer network of the theory.

    Example:
        >>> patch_logits(torch.tensor([[2.0, 0.0]]), torch.tensor([[[1.0, 5.0], [-0.5, 3.0]]]))  # 2^3 - 1
        tensor([7.])
    """
    return activation(_responses(weight, x)).sum((-2, -1))


def patch_gradient(
    weight: Float[Tensor, "*seeds m d"], x: Float[Tensor, "*seeds n p d"], y: Float[Tensor, "*seeds n"]
) -> Float[Tensor, "*seeds m d"]:
    r"""Gradient of the mean logistic loss of the cubic network, in closed form.

    dL/dw_r = -(3/n) sum_i l_i y_i sum_j <w_r, X_ij>^2 X_ij, with l_i = sigmoid(-y_i f(X_i)), which vanishes for
    examples that are fitted.

    Args:
        weight: w_r.
        x: the patches of each example.
        y: classes, -1 or 1.

    Shapes: leading axes, if any, are seeds.
    Cost: 4 n p d m operations a seed.
    Raises: ValueError if shapes disagree.
    Source: Jelassi and Li, ICML 2022.

    Example:
        >>> x, y = torch.ones(1, 1, 1), torch.ones(1)
        >>> patch_gradient(torch.zeros(1, 1), x, y)  # cubic: no growth from zero
        tensor([[-0.]])
    """
    z = _responses(weight, x)
    pull = _pull(z, y)
    force = z.square() * pull[..., None, None]
    return -3 * (force.flatten(-3, -2).mT @ x.flatten(-3, -2))


def signal_rate(
    weight: Float[Tensor, "*seeds m d"],
    x: Float[Tensor, "*seeds n p d"],
    y: Float[Tensor, "*seeds n"],
    w_star: Float[Tensor, " d"],
) -> Float[Tensor, "*seeds m"]:
    r"""How fast each c_r = <w_r, w*> grows under gradient flow, from the patches with the feature alone.

    dc_r/dt = 3 c_r^2 (1/n) sum_i l_i |c_i|^3, with the margin c_i of the example. Noise is orthogonal to w*, so this is
    the whole of it: equal to -<dL/dw_r, w*>.

    Args:
        weight: w_r.
        x: the patches of each example.
        y: classes, -1 or 1.
        w_star: the feature, of norm 1.

    Shapes: leading axes, if any, are seeds.
    Cost: that of :func:`patch_logits`.
    Raises: ValueError if shapes disagree.
    Source: Jelassi and Li, ICML 2022, the projected dynamics.

    Example:
        >>> w, x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[[2.0, 0.0]]]), torch.ones(1)
        >>> signal_rate(w, x, y, torch.tensor([1.0, 0.0])) + patch_gradient(w, x, y)[:, 0]
        tensor([0.])
    """
    pull = _pull(_responses(weight, x), y)
    strength = _cubic(_along(x, w_star)).sum(-1)
    return 3 * _along(weight, w_star).square() * (pull * strength).sum(-1, keepdim=True)


def _responses(weight: Tensor, x: Tensor) -> Tensor:
    """<w_r, X_j>, (*seeds, n, p, m)."""
    if weight.ndim < 2 or x.ndim != weight.ndim + 1:
        raise ValueError(
            f"weight must have shape (*seeds, m, d) and x (*seeds, n, p, d), but they have {tuple(weight.shape)} and "
            f"{tuple(x.shape)}"
        )
    if x.shape[:-3] != weight.shape[:-2] or x.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"x must have the seeds and the d of weight, {tuple(weight.shape)}, but has shape {tuple(x.shape)}"
        )
    return (x.flatten(-3, -2) @ weight.mT).unflatten(-2, x.shape[-3:-1])


def _pull(z: Tensor, y: Tensor) -> Tensor:
    """y_i l_i / n from the responses of the cubic network."""
    if y.shape != z.shape[:-2]:
        raise ValueError(f"y must have shape {tuple(z.shape[:-2])}, as x has it, but has {tuple(y.shape)}")
    return y * torch.sigmoid(-y * _cubic(z).sum((-2, -1))) / y.shape[-1]


class MarginPatchCNN(nn.Module):
    """One hidden layer, shared by all patches, whose activations are summed: :func:`patch_logits` as a module.

    Args:
        d: dimensions of a patch.
        m: hidden units.
        activation: elementwise; z^3 by default, which makes a feature grow the faster the larger it is.
        sigma_0: standard deviation of the initial weights.
        generator: source of the initial weights; None is torch's global one.

    Attributes:
        weight: w_r.

    Shapes:
        ``x`` (n, patches, d); ``weight`` (m, d); returns (n,), positive for class 1.

    Cost:
        2 n * patches * d * m operations.

    Raises:
        TypeError: for a size that is no integer.
        ValueError: for a size below 1, a negative ``sigma_0``, or an input of another shape.

    Source:
        Jelassi and Li, ICML 2022.

    Example:
        >>> from torchstone.dynamics import DampenedSGD, MarginPatchDataset, group_accuracy
        >>> data = MarginPatchDataset(50, generator=torch.Generator().manual_seed(0))
        >>> net = MarginPatchCNN(100, generator=torch.Generator().manual_seed(1))
        >>> optimizer = DampenedSGD(net.parameters(), lr=0.5, momentum=0.99)
        >>> for _ in range(1000):
        ...     optimizer.zero_grad()
        ...     (-torch.nn.functional.logsigmoid(data.y * net(data.x))).mean().backward()
        ...     optimizer.step()
        >>> group_accuracy(net(data.x), data.y, data.small_margin).overall.item()
        1.0
    """

    def __init__(
        self,
        d: int,
        m: int = 4,
        *,
        activation: Activation = _cubic,
        sigma_0: float = 0.05,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_int("d", d, 1)
        check_int("m", m, 1)
        check_float("sigma_0", sigma_0, 0.0)
        self.activation = activation
        self.weight = nn.Parameter(torch.randn(m, d, generator=generator).mul_(sigma_0))

    def forward(self, x: Float[Tensor, "n p d"]) -> Float[Tensor, " n"]:
        """Return f(X)."""
        return patch_logits(self.weight, x, activation=self.activation)

    def extra_repr(self) -> str:
        """Sizes, as ``print(module)`` shows them."""
        return f"d={self.weight.shape[1]}, m={self.weight.shape[0]}"


def feature_alignment(
    model: nn.Module | Float[Tensor, "*seeds m d"], w_star: Float[Tensor, " d"]
) -> Float[Tensor, "*seeds"]:
    """C = sum_r <w_r, w*>^3, by which a patch c w* adds c^3 C to the logit of the cubic network.

    Args:
        model: a module with ``weight`` (m, d), or that tensor.
        w_star: the feature, of norm 1.

    Shapes: weights may have leading axes of seeds; returns one number for each.
    Cost: O(m d).
    Raises: TypeError if ``model`` has no ``weight``; ValueError if the dimensions disagree.
    Source: Jelassi and Li, ICML 2022.

    Example:
        >>> feature_alignment(torch.tensor([[1.0, 0.0], [2.0, 7.0]]), torch.tensor([1.0, 0.0]))
        tensor(9.)
    """
    return _cubic(_along(_weight(model), w_star)).sum(-1)


class MarginParts(NamedTuple):
    """What the feature and the noise of each example add to its margin y f(X)."""

    signal: Tensor
    noise: Tensor


def margin_parts(
    model: MarginPatchCNN | Float[Tensor, "*seeds m d"],
    x: Float[Tensor, "*seeds n p d"],
    y: Float[Tensor, "*seeds n"],
    w_star: Float[Tensor, " d"],
) -> MarginParts:
    r"""Split the margins y f(X) of the cubic network into signal and noise.

    signal_i = y_i C sum_j <X_ij, w*>^3, which is |c_i|^3 C for the data of this module; noise_i is the rest. A training
    example whose margin is mostly noise has been memorised.

    Args:
        model: the network (with cubic activation), or its weights.
        x: the patches of each example.
        y: classes, -1 or 1.
        w_star: the feature, of norm 1.

    Shapes: leading axes, if any, are seeds; returns two tensors like ``y``.
    Cost: that of :func:`patch_logits`.
    Raises: ValueError if shapes disagree.
    Source: Jelassi and Li, ICML 2022.

    Example:
        >>> x = torch.tensor([[[0.5, 0.0], [0.0, 1.0]]])
        >>> margin_parts(torch.tensor([[2.0, 3.0]]), x, torch.ones(1), torch.tensor([1.0, 0.0]))
        MarginParts(signal=tensor([1.]), noise=tensor([27.]))
    """
    weight = _weight(model)
    signal = y * feature_alignment(weight, w_star).unsqueeze(-1) * _cubic(_along(x, w_star)).sum(-1)
    return MarginParts(signal, y * patch_logits(weight, x) - signal)


def _weight(model: nn.Module | Tensor) -> Tensor:
    weight = model if isinstance(model, Tensor) else getattr(model, "weight", None)
    if not isinstance(weight, Tensor):
        raise TypeError(f"model must be weights (*seeds, m, d) or a module with them, not {type(model).__name__}")
    return weight


def _along(x: Tensor, w_star: Tensor) -> Tensor:
    if w_star.shape != x.shape[-1:]:
        raise ValueError(f"w_star must have shape {tuple(x.shape[-1:])}, but has {tuple(w_star.shape)}")
    return x @ w_star
