r"""Gradient descent with dampened momentum from a zero start: the heavy ball as theory writes it.

With g <- gamma g + (1 - gamma) grad the buffer is a weighted mean of past gradients, so momentum does not lengthen the
step: gradient descent with and without it can be compared at one learning rate. :class:`torch.optim.SGD` with
``dampening=gamma`` is the same but for its start: its buffer begins as the first gradient, undampened, which then
weighs 1 / (1 - gamma) times as much as in the mean.

Source: Jelassi and Li, *Towards understanding how momentum improves generalization in deep learning*, ICML 2022.
Nesterov's form, weight decay and ``maximize`` are torch's, not the paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from torchstone._checks import check_float
from torchstone.training.stacked import per_seed

__all__ = ["DampenedSGD"]


class DampenedSGD(Optimizer):
    r"""Gradient descent with dampened momentum, whose buffer starts at zero.

    g <- gamma g + (1 - tau) grad, then w <- w - eta g, from g = 0. With ``nesterov`` the step is along
    (1 - tau) grad + gamma g instead of g. With ``momentum=0`` it is gradient descent, whatever ``dampening`` is.

    All is elementwise, so parameters with a leading axis of seeds need nothing special; ``lr`` and ``momentum`` may
    then hold one value for each seed. With rates per seed the group's ``"lr"`` is 1, a common factor for torch's
    schedulers, and the rates stand in ``"lr_per_seed"``.

    Args:
        params: parameters, or groups of them.
        lr: learning rate eta.
        momentum: gamma, in [0, 1).
        dampening: tau, in [0, 1]; None is ``momentum``, also when a schedule changes that.
        weight_decay: adds this times w to the gradient.
        nesterov: see above.
        maximize: climb instead of descend.
        zero_init: whether the buffer starts at zero; else as in :class:`torch.optim.SGD`, whose steps are then the
            same to the bit.

    Shapes:
        ``lr`` and ``momentum`` are numbers or tensors () or (seeds,); the latter if all parameters are (seeds, ...).

    Cost:
        A buffer like the parameters. Those of a group are updated together, which spares an accelerator many launches.

    Raises:
        ValueError: for an option out of range, or values for another number of seeds than a parameter has.
        TypeError: for an option of a wrong type, or a sparse gradient.

    Source:
        Jelassi and Li, ICML 2022.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = DampenedSGD([w], lr=1.0, momentum=0.75)
        >>> for _ in range(2):
        ...     w.grad = torch.tensor([1.0])
        ...     optimizer.step()
        >>> w.item()  # 1 - 0.25 - (0.75 * 0.25 + 0.25)
        0.3125
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float | Tensor = 0.9,
        *,
        dampening: float | None = None,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        zero_init: bool = True,
    ) -> None:
        defaults = {
            "lr": _check("lr", lr, float("inf")),
            "momentum": _check("momentum", momentum, 1.0),
            "dampening": None if dampening is None else check_float("dampening", dampening, 0.0, 1.0),
            "weight_decay": check_float("weight_decay", weight_decay, 0.0),
            "nesterov": nesterov,
            "maximize": maximize,
            "zero_init": zero_init,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in any optimiser of torch."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["lr_per_seed"] = None
        if isinstance(group["lr"], Tensor) and group["lr"].ndim:  # torch's schedulers move one number
            group["lr_per_seed"], group["lr"] = group["lr"], 1.0
        for name in ("lr_per_seed", "momentum"):
            if isinstance(group[name], Tensor) and group[name].ndim:
                for p in group["params"]:
                    per_seed(group[name], p)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make one step; return the loss of ``closure``, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [_dense(p.grad) for p in params]
            if group["maximize"]:
                grads = _scaled(grads, -1.0)
            if group["weight_decay"]:
                grads = _scaled(grads, 1.0)
                _add_(grads, params, group["weight_decay"])
            lr = group["lr"] if group["lr_per_seed"] is None else group["lr"] * group["lr_per_seed"]
            _add_(params, self._directions(params, grads, group), _each(-lr, params))
        return loss

    def _directions(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Bring the buffers up to date; return what each parameter moves along."""
        gamma, tau = group["momentum"], group["dampening"]
        if not isinstance(gamma, Tensor) and gamma == 0:
            return grads
        share = 1 - (gamma if tau is None else tau)
        if isinstance(gamma, Tensor):  # the seeds without momentum are not dampened
            share = torch.where(gamma == 0, torch.ones_like(gamma), share)
        keep, fresh = _each(gamma, params), _each(share, params)
        new = [i for i, p in enumerate(params) if "momentum_buffer" not in self.state[p]]
        for i in new:
            self.state[params[i]]["momentum_buffer"] = torch.zeros_like(params[i])
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        _scale_(buffers, keep)
        _add_(buffers, grads, fresh)
        if not group["zero_init"]:
            for i in new:
                buffers[i].copy_(grads[i])
        if not group["nesterov"]:
            return buffers
        ahead = _scaled(grads, fresh)
        _add_(ahead, buffers, keep)
        return ahead


# ---------------------------------------------------------------- many tensors at once


Factor = float | list[Tensor]  # a number for all tensors, or for each a tensor to multiply it by


def _each(value: float | Tensor, params: Sequence[Tensor]) -> Factor:
    return [per_seed(value, p) if value.ndim else value.to(p) for p in params] if isinstance(value, Tensor) else value


def _scaled(tensors: list[Tensor], factor: Factor) -> list[Tensor]:
    return list(torch._foreach_mul(tensors, factor))  # pyright: ignore[reportPrivateImportUsage]


def _scale_(tensors: list[Tensor], factor: Factor) -> None:
    torch._foreach_mul_(tensors, factor)  # pyright: ignore[reportPrivateImportUsage]


def _add_(tensors: list[Tensor], others: list[Tensor], factor: Factor) -> None:
    if isinstance(factor, list):
        torch._foreach_add_(tensors, _scaled(others, factor))  # pyright: ignore[reportPrivateImportUsage]
    else:
        torch._foreach_add_(tensors, others, alpha=factor)  # pyright: ignore[reportPrivateImportUsage]


def _dense(grad: Tensor | None) -> Tensor:
    if grad is None or grad.is_sparse:
        raise TypeError("DampenedSGD takes dense gradients, but one is sparse")
    return grad


def _check(name: str, value: float | Tensor, limit: float) -> float | Tensor:
    """Check a number, or all of a tensor () or (seeds,), to lie in [0, limit)."""
    if not isinstance(value, Tensor):
        return check_float(name, value, 0.0, limit, open_high=True)
    if value.ndim > 1:
        raise ValueError(f"{name} must have shape () or (seeds,), but has {tuple(value.shape)}")
    for one in value.reshape(-1).tolist():
        check_float(name, one, 0.0, limit, open_high=True)
    return value
