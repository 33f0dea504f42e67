r"""Gradient flow: the path that gradient descent follows when its step goes to zero, for any module and loss.

    d theta / dt = -grad L(theta),   theta(0) = the module's parameters.

One network is integrated by SciPy's ``DOP853``. A stack of networks (parameters with a leading axis) is integrated in
one pass by torchdiffeq's ``dopri8``, in a common sequence of steps: the error that steers it is the largest over the
networks, so that none is computed less carefully than it would be alone, and each may have times of its own, to which
its clock is scaled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchstone._checks import check_finite, check_float, check_int, check_one_of
from torchstone.errors import DivergedError, require

__all__ = ["Flow", "gradient_flow", "integrate"]

SCIPY = {"dop853": "DOP853", "rk45": "RK45", "radau": "Radau", "bdf": "BDF", "lsoda": "LSODA"}
TORCHDIFFEQ = ("dopri8", "dopri5", "bosh3")

M = TypeVar("M", bound=nn.Module)


class Flow(NamedTuple):
    """States along a gradient flow.

    Attributes:
        t: the times.
        states: name of a parameter -> its values, (times, *shape).
        loss: the loss at these times.
        evaluations: how often the gradient was computed on the way.
    """

    t: Float[Tensor, "times *stack"]
    states: dict[str, Tensor]
    loss: Float[Tensor, "times *stack"]
    evaluations: int

    def at(self, index: int) -> dict[str, Tensor]:
        """The parameters at one of the times, as ``module.load_state_dict(..., strict=False)`` takes them."""
        return {name: values[index] for name, values in self.states.items()}


def gradient_flow(
    module: M,
    loss: Callable[[M], Tensor],
    t: Float[Tensor, " times"] | Float[Tensor, "times stack"],
    *,
    method: str | None = None,
    rtol: float = 1e-9,
    atol: float = 1e-12,
    max_evaluations: int = 1_000_000,
) -> Flow:
    r"""Follow d theta / dt = -grad L(theta) from the module's parameters, and return them at the times ``t``.

    A loss of shape () belongs to one network. A loss of shape (stack,) belongs to a stack: every parameter has that
    leading axis, and loss number s depends on slice number s alone.

    Args:
        module: its parameters that require a gradient move; buffers stay. Afterwards it is as it was.
        loss: ``loss(module)``, a deterministic function of the parameters.
        t: rising times, not before 0. (times, stack) gives each network of a stack its own.
        method: ``dop853`` (default for one network), ``rk45``, ``radau``, ``bdf``, ``lsoda`` of SciPy for one network;
            ``dopri8`` (default for a stack), ``dopri5``, ``bosh3`` of torchdiffeq for both.
        rtol: relative error allowed in a step, for each network.
        atol: absolute error allowed in a step.
        max_evaluations: of the gradient; more raise an error.

    Shapes: see :class:`Flow`.
    Cost: 13 gradients a step with ``dop853`` and ``dopri8``, of which a run takes tens to thousands.
    Raises: ValueError for bad times, losses or tolerances; DivergedError if the flow leaves the finite numbers;
        RuntimeError if ``max_evaluations`` are not enough. UserWarning unless the parameters are float64.
    Source: Hairer, Noersett, Wanner, *Solving Ordinary Differential Equations I*, 1993, II.5 and II.10 (the methods).

    Example:
        >>> line = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> _ = nn.init.constant_(line.weight, 2.0)
        >>> flow = gradient_flow(line, lambda line: line.weight.square().sum() / 2, torch.tensor([0.0, 1.0]))
        >>> flow.states["weight"].flatten()  # 2 and 2 / e
        tensor([2.0000, 0.7358], dtype=torch.float64)
    """
    names, parameters = _moving(module)
    before = [parameter.detach().clone() for parameter in parameters]
    value = loss(module)
    lead = _stack_of(value, dict(zip(names, parameters, strict=True)))
    sizes = [parameter[0].numel() if lead else parameter.numel() for parameter in parameters]

    def place(flat: Tensor) -> None:
        with torch.no_grad():
            for parameter, part in zip(parameters, flat.split(sizes, -1), strict=True):
                parameter.copy_(part.reshape(parameter.shape))

    def velocity(flat: Tensor) -> Tensor:
        place(flat)
        with torch.enable_grad():
            total = loss(module).sum()
        slopes = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
        return -torch.cat([slope.reshape(*lead, -1) for slope in slopes], -1)

    start = torch.cat([parameter.reshape(*lead, -1) for parameter in before], -1)
    try:
        path, evaluations = integrate(
            velocity, start, t, method=method, rtol=rtol, atol=atol, max_evaluations=max_evaluations
        )
        losses = []
        for flat in path:
            place(flat)
            losses.append(loss(module).detach())
    finally:
        place(start)
    parts = path.split(sizes, -1)
    states = {
        name: part.reshape(len(path), *parameter.shape)
        for name, part, parameter in zip(names, parts, parameters, strict=True)
    }
    return Flow(t, states, torch.stack(losses), evaluations)


def integrate(
    velocity: Callable[[Tensor], Tensor],
    start: Float[Tensor, "*stack size"],
    t: Float[Tensor, " times"] | Float[Tensor, "times stack"],
    *,
    method: str | None = None,
    rtol: float = 1e-9,
    atol: float = 1e-12,
    max_evaluations: int = 1_000_000,
) -> tuple[Float[Tensor, "times *stack size"], int]:
    """Solve dy/dt = velocity(y), y(0) = ``start``, for one state (size,) or a stack of them (stack, size).

    Arguments and errors are those of :func:`gradient_flow`. Returns the states at ``t``, and how often ``velocity`` was
    called.

    Example:
        >>> path, calls = integrate(lambda y: -y, torch.ones(2, 1).double(), torch.tensor([[1.0, 2.0]]))
        >>> path.flatten()  # 1 / e and 1 / e^2
        tensor([0.3679, 0.1353], dtype=torch.float64)
    """
    rtol, atol = (check_float(name, value, 0, 1, open_low=True) for name, value in (("rtol", rtol), ("atol", atol)))
    check_int("max_evaluations", max_evaluations, 1)
    times = _checked_times(t, start)
    stacked = start.ndim == 2
    method = method or ("dopri8" if stacked else "dop853")
    check_one_of("method", method, TORCHDIFFEQ if stacked else (*SCIPY, *TORCHDIFFEQ))
    check_finite("the parameters at the start", start)
    if start.dtype != torch.float64:
        warnings.warn(
            f"the parameters are {start.dtype}, in which rtol={rtol:g} is out of reach; call module.double() first",
            stacklevel=3,
        )
    calls = 0

    def counted(state: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > max_evaluations:
            raise RuntimeError(
                f"max_evaluations={max_evaluations} were not enough: the problem is stiff (try method='lsoda' on one "
                "network), or the times are too long"
            )
        return velocity(state)

    if method in SCIPY:
        path = _by_scipy(counted, start, times, SCIPY[method], rtol, atol)
    else:
        path = _by_torchdiffeq(counted, start, times, method, rtol, atol)
    return path, calls


def _moving(module: nn.Module) -> tuple[list[str], list[nn.Parameter]]:
    """Names and values of the parameters that move."""
    moving = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not moving:
        raise ValueError("module has no parameter that requires a gradient, so nothing can flow")
    kinds = {(parameter.dtype, parameter.device) for parameter in moving.values()}
    if len(kinds) > 1:
        raise ValueError(f"all parameters must have one dtype and device, but there are {sorted(map(str, kinds))}")
    return list(moving), list(moving.values())


def _stack_of(value: Tensor, parameters: dict[str, nn.Parameter]) -> tuple[int, ...]:
    """The leading axis that the loss and all parameters share: () for one network."""
    if value.ndim == 0:
        return ()
    if value.ndim > 1:
        raise ValueError(f"loss must return a number, or one for each network of a stack, but has {tuple(value.shape)}")
    for name, parameter in parameters.items():
        if parameter.ndim == 0 or len(parameter) != len(value):
            raise ValueError(
                f"loss returns {len(value)} values, as for a stack of {len(value)} networks, but parameter {name!r} "
                f"has shape {tuple(parameter.shape)}; of one network it must return one number"
            )
    return (len(value),)


def _checked_times(t: Tensor, start: Tensor) -> Tensor:
    """The times as float64 on the device of the states; (times,) or (times, stack)."""
    if t.ndim != 1 and not (start.ndim == 2 and t.ndim == 2 and t.shape[1] == len(start)):
        limit = f"(times,) or (times, {len(start)})" if start.ndim == 2 else "(times,)"
        raise ValueError(f"t must have shape {limit}, but has {tuple(t.shape)}")
    if not len(t):
        raise ValueError("t is empty: give at least one time")
    check_finite("t", t)
    if bool((t[0] < 0).any()) or bool((t.diff(dim=0) <= 0).any()):
        raise ValueError("t must rise and not begin before 0")
    return t.to(start.device, torch.float64)


def _by_scipy(
    velocity: Callable[[Tensor], Tensor], start: Tensor, times: Tensor, method: str, rtol: float, atol: float
) -> Tensor:
    from scipy.integrate import solve_ivp

    moments = times.cpu().numpy()
    if moments[-1] == 0:
        return start.unsqueeze(0).clone()
    found = solve_ivp(
        lambda _, state: velocity(torch.from_numpy(state).to(start)).cpu().double().numpy(),
        (0.0, moments[-1]),
        start.cpu().double().numpy(),
        method=method,
        t_eval=moments,
        rtol=max(rtol, 1e-13),
        atol=atol,
    )
    path = torch.from_numpy(found.y.T.copy()).to(start)
    if not found.success or not path.isfinite().all():
        reached = found.t[-1] if found.t.size else 0.0
        raise DivergedError(f"gradient flow ended after t = {reached:g} of {moments[-1]:g}: {found.message}")
    return path


def _by_torchdiffeq(
    velocity: Callable[[Tensor], Tensor], start: Tensor, times: Tensor, method: str, rtol: float, atol: float
) -> Tensor:
    """From each time to the next on a clock of its own, 0 to 1: its steps end there, so nothing is interpolated."""
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise require("torchdiffeq", "ode") from None

    def worst(error: Tensor) -> Tensor:
        return error.square().mean(-1).sqrt().max()

    clock = start.new_tensor([0.0, 1.0], dtype=torch.float64)
    state, now, step, spans_before = start, torch.zeros_like(times[0]), None, None
    path = []
    for moment in times:
        spans = moment - now
        if bool((spans == 0).all()):  # asked for the start
            path.append(state)
            continue
        if step is not None and spans_before is not None:
            step = min(1.0, step * float((spans_before / spans).amax()))
        # torchdiffeq finds callbacks on the function; the steps it took are where the next interval begins.
        clocked = _Clocked(velocity, (spans if spans.ndim == 0 else spans.unsqueeze(1)).to(start.dtype))
        options = {"norm": worst, "step_t": clock[1:], "first_step": step}
        try:
            found: Any = odeint(clocked, state, clock, rtol=rtol, atol=atol, method=method, options=options)
        except AssertionError as problem:  # how torchdiffeq says that no step is small enough
            raise DivergedError(f"gradient flow ended before t = {float(moment.max()):g}: {problem}") from problem
        state = found[1]
        if not state.isfinite().all():
            raise DivergedError(f"gradient flow left the finite numbers before t = {float(moment.max()):g}")
        path.append(state)
        now, step, spans_before = moment, clocked.next_step, spans
    return torch.stack(path)


class _Clocked:
    """The velocity on the clock of one interval; remembers the step with which the next one may begin."""

    def __init__(self, velocity: Callable[[Tensor], Tensor], spans: Tensor) -> None:
        self.velocity, self.spans = velocity, spans
        self.accepted, self.proposed = 0, 1.0

    def __call__(self, t: Tensor, state: Tensor) -> Tensor:
        return self.velocity(state) * self.spans

    def callback_step(self, t: Tensor, state: Tensor, step: Tensor) -> None:
        self.proposed = float(step)

    def callback_accept_step(self, t: Tensor, state: Tensor, step: Tensor) -> None:
        self.accepted += 1

    @property
    def next_step(self) -> float:
        """The last step proposed; twice that where one step was enough, so that steps can grow."""
        return self.proposed * (2.0 if self.accepted == 1 else 1.0)
