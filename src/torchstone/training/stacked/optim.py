"""Optimisers of stacked parameters with hyper-parameters per seed, and reductions that leave the seeds apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.optim import Optimizer

from torchstone._checks import check_float

__all__ = ["SGD", "AdamW", "clip_grad_norm_", "global_norm", "per_seed"]

# A hyper-parameter: one for all seeds, or one for each.
Hyper: TypeAlias = float | Sequence[float] | Float[Tensor, " seeds"]


def per_seed(values: float | Sequence[float] | Tensor, like: Shaped[Tensor, "seeds ..."]) -> Tensor:
    """Return ``values`` as a tensor (S, 1, ..., 1) that broadcasts against ``like`` (S, ...).

    Raises:
        ValueError: if there are neither 1 nor S values.

    Example:
        >>> per_seed([0.1, 0.2], torch.zeros(2, 3, 4)).shape
        torch.Size([2, 1, 1])
    """
    wide = torch.as_tensor(values, dtype=like.dtype, device=like.device)
    if wide.ndim > 1 or wide.numel() not in (1, len(like)):
        raise ValueError(f"values must be 1 number or {len(like)}, one per seed, but have shape {tuple(wide.shape)}")
    return wide.expand(len(like)).reshape(-1, *[1] * (like.ndim - 1))


def global_norm(tensors: Iterable[Shaped[Tensor, "seeds ..."]]) -> Float[Tensor, " seeds"]:
    """Return each seed's Euclidean norm over all ``tensors``: the sum runs over every axis but the first.

    Example:
        >>> global_norm([torch.ones(2, 3), torch.ones(2, 1, 1)])
        tensor([2., 2.])
    """
    norms = [torch.linalg.vector_norm(t.flatten(1), dim=1) if t.ndim > 1 else t.abs() for t in tensors]
    if not norms:
        raise ValueError("tensors must hold at least 1 tensor, but hold 0")
    return torch.linalg.vector_norm(torch.stack(norms), dim=0)


def clip_grad_norm_(params: Iterable[Tensor], max_norm: Hyper) -> Float[Tensor, " seeds"]:
    """Scale each seed's gradient in place to norm ``max_norm`` at most; return the norms before.

    This is ``torch.nn.utils.clip_grad_norm_`` of each seed.

    Example:
        >>> p = torch.nn.Parameter(torch.zeros(2, 3))
        >>> p.grad = torch.tensor([[3.0, 4.0, 0.0], [0.3, 0.4, 0.0]])
        >>> clip_grad_norm_([p], 1.0)
        tensor([5.0000, 0.5000])
        >>> p.grad
        tensor([[0.6000, 0.8000, 0.0000],
                [0.3000, 0.4000, 0.0000]])
    """
    grads = [p.grad for p in params if p.grad is not None]
    norms = global_norm(grads)
    factor = (per_seed(max_norm, norms) / (norms + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(per_seed(factor, grad))
    return norms


class SGD(Optimizer):
    """``torch.optim.SGD`` on stacked parameters, every hyper-parameter a number or one per seed.

    ``g <- g + weight_decay p``; ``b <- momentum b + (1 - dampening) g`` (first step: ``b = g``); ``p <- p - lr b``, or
    with ``nesterov`` ``p <- p - lr (g + momentum b)``.

    With a learning rate per seed the group's ``"lr"`` is 1, a factor common to all seeds that torch's schedulers
    move, and the rates stand in ``"lr_per_seed"``.

    Args:
        params: parameters with a leading axis of seeds.
        lr: learning rate.
        momentum: 0 is none; of several seeds some may have none.
        dampening: of momentum.
        weight_decay: L2 penalty.
        nesterov: look ahead; needs momentum and no dampening.

    Raises:
        ValueError: if a hyper-parameter is out of range, or there are not as many as seeds.

    Example:
        >>> p = torch.nn.Parameter(torch.zeros(2, 3))
        >>> sgd = SGD([p], lr=[0.1, 1.0])
        >>> p.grad = torch.ones(2, 3)
        >>> sgd.step()
        >>> p.tolist()
        [[-0.10000000149011612, -0.10000000149011612, -0.10000000149011612], [-1.0, -1.0, -1.0]]
    """

    def __init__(
        self,
        params: Any,
        lr: Hyper = 1e-3,
        momentum: Hyper = 0.0,
        dampening: Hyper = 0.0,
        weight_decay: Hyper = 0.0,
        nesterov: bool = False,
    ) -> None:
        options = {
            "lr": _hyper("lr", lr),
            "momentum": _hyper("momentum", momentum),
            "dampening": _hyper("dampening", dampening, low=-math.inf),
            "weight_decay": _hyper("weight_decay", weight_decay),
        }
        if nesterov and (not _any(options["momentum"]) or _any(options["dampening"])):
            raise ValueError(f"nesterov needs momentum and no dampening, but they are {momentum} and {dampening}")
        super().__init__(params, {**options, "nesterov": nesterov, "lr_per_seed": None})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with hyper-parameters of their own where given."""
        super().add_param_group(param_group)
        _spread_lr(self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make one step."""
        loss = _evaluate(closure)
        for group in self.param_groups:
            momentum, dampening, decay = group["momentum"], group["dampening"], group["weight_decay"]
            if isinstance(momentum, Tensor) or isinstance(dampening, Tensor):  # without momentum nothing is dampened
                momentum, dampening = (torch.as_tensor(each, dtype=torch.float64) for each in (momentum, dampening))
                dampening = torch.where(momentum == 0, 0.0, dampening)
            for p in group["params"]:
                if p.grad is None:
                    continue
                grad = p.grad
                if _any(decay):
                    grad = grad + p * _wide(decay, p)
                if _any(momentum):
                    state = self.state[p]
                    if "momentum_buffer" not in state:
                        buffer = state["momentum_buffer"] = grad.clone()
                    else:
                        buffer = state["momentum_buffer"]
                        buffer.mul_(_wide(momentum, p)).add_(grad * _wide(1 - dampening, p))
                    grad = grad + buffer * _wide(momentum, p) if group["nesterov"] else buffer
                p.sub_(grad * _rate(group, p))
        return loss


class AdamW(Optimizer):
    """``torch.optim.AdamW`` on stacked parameters, every hyper-parameter a number or one per seed.

    ``m <- b1 m + (1 - b1) g``; ``v <- b2 v + (1 - b2) g^2``; ``p <- p - lr m' / (sqrt(v') + eps)`` with
    ``m' = m / (1 - b1^t)`` and ``v' = v / (1 - b2^t)``, after ``p <- (1 - lr weight_decay) p``.

    With a learning rate per seed the group's ``"lr"`` is 1, a factor common to all seeds that torch's schedulers
    move, and the rates stand in ``"lr_per_seed"``.

    Args:
        params: parameters with a leading axis of seeds.
        lr: learning rate.
        betas: decay of the two means.
        eps: added to the root.
        weight_decay: see above.
        decoupled: False adds ``weight_decay p`` to the gradient instead, which is ``torch.optim.Adam``.

    Raises:
        ValueError: if a hyper-parameter is out of range, or there are not as many as seeds.

    Example:
        >>> p = torch.nn.Parameter(torch.zeros(2, 3))
        >>> adam = AdamW([p], lr=[0.125, 1.0])
        >>> p.grad = torch.ones(2, 3)
        >>> adam.step()
        >>> [round(value, 4) for value in p[:, 0].tolist()]
        [-0.125, -1.0]
    """

    def __init__(
        self,
        params: Any,
        lr: Hyper = 1e-3,
        betas: tuple[Hyper, Hyper] = (0.9, 0.999),
        eps: Hyper = 1e-8,
        weight_decay: Hyper = 1e-2,
        decoupled: bool = True,
    ) -> None:
        options = {
            "lr": _hyper("lr", lr),
            "betas": tuple(_hyper(f"betas[{i}]", beta, high=1.0) for i, beta in enumerate(betas)),
            "eps": _hyper("eps", eps),
            "weight_decay": _hyper("weight_decay", weight_decay),
        }
        super().__init__(params, {**options, "decoupled": decoupled, "lr_per_seed": None})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with hyper-parameters of their own where given."""
        super().add_param_group(param_group)
        _spread_lr(self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make one step."""
        loss = _evaluate(closure)
        for group in self.param_groups:
            (beta1, beta2), decay = group["betas"], group["weight_decay"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                state["step"] += 1
                t, lr, grad = int(state["step"]), _rate(group, p), p.grad
                if _any(decay):
                    if group["decoupled"]:
                        p.mul_(1 - lr * _wide(decay, p))
                    else:
                        grad = grad + p * _wide(decay, p)
                mean = state["exp_avg"].mul_(_wide(beta1, p)).add_(grad * _wide(1 - beta1, p))
                square = state["exp_avg_sq"].mul_(_wide(beta2, p)).add_(grad.square() * _wide(1 - beta2, p))
                root = square.sqrt().div_(_wide((1 - beta2**t) ** 0.5, p)).add_(_wide(group["eps"], p))
                p.sub_(mean / root * (lr / _wide(1 - beta1**t, p)))
        return loss


def _hyper(name: str, value: Hyper, low: float = 0.0, high: float = math.inf) -> Any:
    """Return a checked hyper-parameter: a float, or a float64 tensor with one for each seed."""
    if isinstance(value, int | float):
        return check_float(name, value, low, high, open_high=True)
    values = torch.as_tensor(value, dtype=torch.float64)
    if values.ndim != 1:
        raise ValueError(f"{name} must be a number or one per seed, but has shape {tuple(values.shape)}")
    for each in values.tolist():
        check_float(name, each, low, high, open_high=True)
    return values


def _spread_lr(group: dict[str, Any]) -> None:
    """Check the lengths in a new group, and move rates per seed out of the reach of schedulers, which need a number."""
    values = {name: value for name, value in group.items() if name != "params"}
    for i, beta in enumerate(values.pop("betas", ())):
        values[f"betas[{i}]"] = beta
    for name, value in values.items():
        for p in group["params"] if isinstance(value, Tensor) else ():
            if p.ndim == 0 or len(p) != len(value):
                raise ValueError(
                    f"{name} must hold one value per seed, but holds {len(value)} for a parameter of shape "
                    f"{tuple(p.shape)}"
                )
    if isinstance(group["lr"], Tensor):
        group["lr_per_seed"], group["lr"] = group["lr"], 1.0


def _any(value: float | Tensor) -> bool:
    return bool(value.any()) if isinstance(value, Tensor) else bool(value)


def _wide(value: float | Tensor, like: Tensor) -> Any:
    """Return a number as it is and values per seed in the shape that broadcasts."""
    return per_seed(value, like) if isinstance(value, Tensor) else value


def _rate(group: dict[str, Any], like: Tensor) -> Any:
    rates = group["lr_per_seed"]
    return group["lr"] if rates is None else _wide(rates * group["lr"], like)


def _evaluate(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
