"""Measures of neural collapse of data that come in batches, in one pass, on one process or several."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchstone._checks import check_int
from torchstone.dynamics.neural_collapse.metrics import Frame, NCMetrics, metrics_of_moments
from torchstone.dynamics.neural_collapse.moments import ClassMoments, check_features, merge_moments
from torchstone.errors import did_you_mean

__all__ = ["FeatureHook", "NeuralCollapseMeter"]


class NeuralCollapseMeter(nn.Module):
    """NC1 to NC3 of features that come in batches: one pass, and no feature is kept.

    Counts, means and the scatter S of the classes are brought up to date batch by batch (Welford): with the means of
    the classes before and after the batch, S <- S + sum_i (h_i - old_{y_i})(h_i - new_{y_i})^T, one product whatever
    the number of classes. Sums are float64; the product is in the precision of the features, at least float32, of rows
    that are centred already. NC4 needs the means beforehand, hence a second pass: :func:`nc_metrics`.

    Under ``torch.distributed`` each process feeds its own part; :meth:`compute` puts them together, so all processes
    must call it, with the meter on a device that their backend knows (``meter.to("cuda")`` for NCCL). The state is in
    ``state_dict``.

    Args:
        num_classes: K.
        dim: numbers in a feature vector.

    Shapes:
        ``update``: ``features`` (n, dim) float, ``labels`` (n,) int64.

    Cost:
        O(n dim^2) an update; K dim + dim^2 numbers of memory.

    Raises:
        TypeError, ValueError: from ``update`` on a wrong shape or dtype, values that are not finite, a label out of
            range; from ``compute`` without any row. A class without rows makes measures NaN, with a warning.

    Source:
        Zhou et al., ICML 2022; Welford, *Note on a Method for Calculating Corrected Sums of Squares and
        Products*, Technometrics 1962.

    Example:
        >>> meter = NeuralCollapseMeter(2, 3)
        >>> for _ in range(4):
        ...     meter.update(torch.tensor([[1.0, 0.0, 0.1], [-1.0, 0.0, 0.1]]), torch.tensor([0, 1]))
        >>> float(meter.compute().nc1), meter.counts.tolist()
        (0.0, [4.0, 4.0])
    """

    counts: Tensor
    means: Tensor
    scatter: Tensor

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.num_classes = check_int("num_classes", num_classes, 2)
        self.dim = check_int("dim", dim, 1)
        for name, shape in (("counts", (num_classes,)), ("means", (num_classes, dim)), ("scatter", (dim, dim))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @property
    def moments(self) -> ClassMoments:
        """What this process has seen."""
        return ClassMoments(self.counts, self.means, self.scatter)

    @torch.no_grad()
    def update(self, features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> None:
        """Take in a batch; it comes to where the meter is."""
        check_features(features, labels, self.num_classes, ndim=2)
        if features.shape[1] != self.dim:
            raise ValueError(f"features must have {self.dim} columns (dim), but have {features.shape[1]}")
        if not len(labels):
            return
        features, labels = features.to(self.means.device), labels.to(self.means.device)
        present, own = labels.unique(return_inverse=True)
        rows = features.detach().double()
        before, old = self.counts[present], self.means[present]
        added = torch.bincount(own, minlength=len(present)).double()
        sums = torch.zeros_like(old).index_add_(0, own, rows)
        new = old + (sums - added[:, None] * old) / (before + added)[:, None]
        old = torch.where(before[:, None] > 0, old, new)  # of a class not seen before: rows are centred even so
        precision = torch.promote_types(features.dtype, torch.float32)
        self.scatter += (rows - old[own]).to(precision).mT @ (rows - new[own]).to(precision)
        self.counts[present], self.means[present] = before + added, new

    @torch.no_grad()
    def merge(self, other: NeuralCollapseMeter) -> NeuralCollapseMeter:
        """Take in what another meter has seen, and return self."""
        if (other.num_classes, other.dim) != (self.num_classes, self.dim):
            raise ValueError(
                f"other must measure {self.num_classes} classes in {self.dim} dimensions, "
                f"but measures {other.num_classes} in {other.dim}"
            )
        merged = merge_moments(self.moments, other.moments)
        self.counts.copy_(merged.counts)
        self.means.copy_(merged.means)
        self.scatter.copy_(merged.scatter)
        return self

    def reset(self) -> None:
        """Forget all rows."""
        for buffer in self.buffers():
            buffer.zero_()

    @torch.no_grad()
    def compute(
        self,
        weight: Float[Tensor, "classes d"] | None = None,
        bias: Float[Tensor, " classes"] | None = None,
        *,
        frame: Frame = "etf",
        centred: bool | None = None,
        rtol: float = 1e-8,
    ) -> NCMetrics:
        """The measures of all rows so far, of all processes; arguments as of :func:`nc_metrics`. It changes nothing."""
        moments = self.moments
        if dist.is_available() and dist.is_initialized():
            moments = _of_all_processes(moments)
        if not float(moments.counts.sum()):
            raise ValueError("a meter must see at least 1 row before compute, but saw 0")
        symmetric = (moments.scatter + moments.scatter.mT) / 2  # but for rounding it is
        found = ClassMoments(moments.counts.clone(), moments.means.clone(), symmetric)
        return metrics_of_moments(found, weight, bias, frame=frame, centred=centred, rtol=rtol)

    def extra_repr(self) -> str:
        """Sizes, as ``print(module)`` shows them."""
        return f"num_classes={self.num_classes}, dim={self.dim}"


def _of_all_processes(own: ClassMoments) -> ClassMoments:
    """The merged moments: each process moves its scatter to the common means, and scatters add up."""
    totals = torch.cat([own.counts[:, None], own.counts[:, None] * own.means], 1)
    dist.all_reduce(totals)
    counts = totals[:, 0]
    means = totals[:, 1:] / counts.clamp(min=1)[:, None]
    apart = own.counts.sqrt()[:, None] * (own.means - means)
    scatter = own.scatter + apart.mT @ apart
    dist.all_reduce(scatter)
    return ClassMoments(counts, means, scatter)


class FeatureHook:
    """What a layer is given in the model's last pass: the features, where the layer is the last.

    A forward hook on one module; take it off with ``remove()``, or use it as a context.

    Args:
        model: any module.
        layer: name of a module inside it, as ``model.named_modules()`` gives them.

    Attributes:
        features: the layer's first positional input in the last pass, detached; ``None`` before the first.

    Raises:
        UnknownNameError: for a layer that the model does not have, with the nearest name.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> meter = NeuralCollapseMeter(2, 3)
        >>> with FeatureHook(net, "2") as hook:
        ...     for x, y in [(torch.rand(8, 2), torch.arange(8) % 2)]:  # any loader
        ...         _ = net.eval()(x)
        ...         meter.update(hook.features, y)
        >>> meter.compute(net[2].weight, net[2].bias).nc3.shape
        torch.Size([])
    """

    features: Any

    def __init__(self, model: nn.Module, layer: str) -> None:
        modules = dict(model.named_modules())
        if layer not in modules:
            raise did_you_mean("layer", layer, modules)
        self.features = None
        self._handle = modules[layer].register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.features = inputs[0].detach() if inputs and isinstance(inputs[0], Tensor) else None

    def remove(self) -> None:
        """Take the hook off and let the features go."""
        self._handle.remove()
        self.features = None

    def __enter__(self) -> FeatureHook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()
