"""What the bench watches while a method trains: fresh models, counted costs, learning curves, resumable state.

A method is somebody else's code, so nothing here relies on its cooperation: costs are counted by hooks on the models
it was given, and the state of the count rides along in the method's own checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from torchstone import models
from torchstone.bench.study import Checkpoint
from torchstone.errors import DivergedError
from torchstone.training import predict

__all__ = ["Curve", "Meter", "ModelMaker", "TrialCheckpoint", "logits_of"]

SAVE_EVERY = 30.0  # seconds: what a killed run may lose; shorter runs write nothing


class Meter:
    """Counts samples through the watched models, steps of their weights, and their parameters."""

    def __init__(self) -> None:
        self.forwards = 0
        self.steps = 0
        self._models: list[nn.Module] = []
        self._weights: set[int] = set()
        self._paused = False

    def watch(self, model: nn.Module) -> None:
        """Count what is done with ``model`` from now on."""
        model.register_forward_pre_hook(self._on_forward, with_kwargs=True)
        self._models.append(model)  # kept, so that the ids below stay unique
        self._weights |= {id(weight) for weight in model.parameters()}

    @contextmanager
    def counting_steps(self) -> Iterator[None]:
        """Inside this block optimisers that hold watched weights are counted."""
        handle = register_optimizer_step_post_hook(self._on_step)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside this block nothing is counted: the bench itself looks at a model."""
        self._paused, before = True, self._paused
        try:
            yield
        finally:
            self._paused = before

    @property
    def cost(self) -> dict[str, float]:
        """Counted costs by name."""
        parameters = sum(weight.numel() for model in self._models for weight in model.parameters())
        return {"steps": self.steps, "forwards": self.forwards, "parameters": parameters}

    def _on_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not self._paused:
            x = next((part for part in (*args, *kwargs.values()) if isinstance(part, Tensor)), None)
            self.forwards += 1 if x is None or not x.ndim else len(x)

    def _on_step(self, optimizer: Optimizer, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        held = (weight for group in optimizer.param_groups for weight in group["params"])
        if not self._paused and any(id(weight) in self._weights for weight in held):
            self.steps += 1

    def __deepcopy__(self, memo: dict[int, Any]) -> Meter:
        return self  # a copy of a watched model is watched by the same meter


class ModelMaker:
    """``make_model()``: a freshly initialised model at each call, the first one the same for all arms of a cell."""

    def __init__(
        self,
        model: Any,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        generator: torch.Generator,
        device: str = "cpu",
        meter: Meter | None = None,
    ) -> None:
        self._arguments = (model, tuple(input_shape), num_classes)
        self._generator, self._device, self._meter = generator, device, meter

    def __call__(self) -> nn.Module:
        model = models.build(*self._arguments, generator=self._generator).to(self._device)
        if self._meter is not None:
            self._meter.watch(model)
        return model


class Curve:
    """``cell.snapshot``: scores the current predictor after each epoch; nothing comes back to the method."""

    def __init__(self, name: str, score: Callable[[Any], float], log: Callable[..., None]) -> None:
        self.points: list[float] = []
        self._name, self._score, self._log = name, score, log

    def __call__(self, predictor: Any) -> None:
        self.add(self._score(predictor))

    def add(self, point: float) -> None:
        """Append a point and log it."""
        self.points.append(point)
        self._log(self._name, point, len(self.points))


class TrialCheckpoint:
    """``cell.checkpoint`` of a method: the bench's counts are saved and restored beside the method's state."""

    def __init__(self, inner: Checkpoint, meter: Meter, curve: Curve) -> None:
        self._inner, self._meter, self._curve = inner, meter, curve
        self._saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The method's last saved state, or ``None``."""
        state = self._inner.load()
        if state is None:
            return None
        self._meter.forwards, self._meter.steps = state["forwards"], state["steps"]
        for point in state["curve"]:
            self._curve.add(point)
        return state["method"]

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state, unless it is fresh anyway."""
        if time.monotonic() - self._saved < SAVE_EVERY:
            return
        counts = {"forwards": self._meter.forwards, "steps": self._meter.steps, "curve": list(self._curve.points)}
        self._inner.save({"method": state, **counts})
        self._saved = time.monotonic()


def logits_of(predictor: Any, x: Tensor, num_classes: int, *, device: str = "cpu") -> Tensor:
    """Logits of a predictor (a module, or any callable) for all of ``x``.

    Raises:
        DivergedError: if they are not all finite.
        TypeError, ValueError: if the predictor cannot be called, or gives something else than (n, classes).
    """
    if isinstance(predictor, nn.Module):
        logits = predict(predictor, x)
    elif callable(predictor):
        function: Callable[..., Any] = predictor
        with torch.inference_mode():
            parts = [function(part.to(device)).to(x.device) for part in x.split(1024)]
        logits = torch.cat(parts)
    else:
        raise TypeError(f"a method must return a callable x -> logits, but returned a {type(predictor).__name__}")
    if logits.shape != (len(x), num_classes):
        raise ValueError(
            f"a predictor must give logits of shape {(len(x), num_classes)}, but gives {tuple(logits.shape)}"
        )
    if not logits.isfinite().all():
        raise DivergedError(
            f"the predictor gives NaN or infinite logits for {int((~logits.isfinite()).any(1).sum())} "
            f"of {len(x)} samples"
        )
    return logits
