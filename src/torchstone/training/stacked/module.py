"""Models of one architecture as one: parameters and buffers get a leading axis of seeds, which ``torch.vmap`` maps."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from torchstone._checks import check_int
from torchstone.training.evaluate import evaluating

__all__ = ["StackedModule", "stack"]

M = TypeVar("M", bound=nn.Module)


class _Place(NamedTuple):
    """Where a module keeps a tensor: its dotted name, and a dictionary of parameters or buffers with the key in it."""

    name: str
    kept: dict[str, Any]
    key: str

    @property
    def tensor(self) -> Tensor:
        return self.kept[self.key]


# All places of one tensor: a tied one has several.
_Leaf: TypeAlias = list[_Place]


class StackedModule(nn.Module, Generic[M]):
    """S models of one architecture, computed as one.

    ``out[s] = model_s(x[s])``: the parameters and buffers of the S models are stacked along a new first axis, and
    ``torch.vmap`` maps the architecture over it. The derivative of a sum of S losses with respect to slice s of a
    parameter is that of loss s alone, so one ``backward()`` gives all gradients, and optimisers that work element by
    element (``torch.optim.SGD``, ``Adam``, ``AdamW``, ``RMSprop``, ...) work as they are. Tied parameters stay tied,
    frozen ones frozen, and running statistics are updated in place.

    The models are copied. What is neither parameter nor buffer (a number, a mode, the rate of a dropout) is that of
    the first. Dropout draws another mask for each seed, all from the same stream, so a seed's masks depend on S.
    What ``torch.vmap`` refuses stays refused: recurrent layers, ``.item()`` and branches that depend on data.
    Attention is computed by its mathematical definition, for which alone torch has a stacked form.

    Args:
        models: at least one.
        chunk_size: how many models are computed at once, where S times the activations do not fit into memory.

    Shapes:
        ``x`` (S, n, ...), or (n, ...) with ``shared=True``; returns (S, n, ...). ``len()`` is S.

    Cost:
        The arithmetic of S models, the overhead of a few: on one thread of a CPU, a training step of eight MLPs
        64-32-10 on 32 rows each takes as long as 3.4 single ones, of twenty as long as 4. Wide layers gain nothing
        there; :func:`~torchstone.training.stacking_speedup` tells.

    Raises:
        ValueError: if there is no model, or two differ: in a name, shape, dtype, a layer's type or options.

    Example:
        >>> nets = [nn.Linear(4, 2) for _ in range(3)]
        >>> stacked = StackedModule(nets)
        >>> x = torch.randn(3, 5, 4)
        >>> torch.allclose(stacked(x)[1], nets[1](x[1]), atol=1e-6)
        True
        >>> {name: tuple(p.shape) for name, p in stacked.named_parameters()}
        {'net.weight': (3, 2, 4), 'net.bias': (3, 2)}
    """

    def __init__(self, models: Sequence[M], *, chunk_size: int | None = None) -> None:
        super().__init__()
        models = list(models)
        if not models:
            raise ValueError("models must hold at least 1 model, but hold 0")
        if chunk_size is not None:
            check_int("chunk_size", chunk_size, 1)
        self.chunk_size = chunk_size
        self._size = len(models)
        leaves = [_leaves(model) for model in models]
        if not leaves[0]:
            raise ValueError("models must have a parameter or a buffer, but have none: there is nothing to stack")
        for number, model in enumerate(models[1:], 1):
            _check_alike(models[0], model, f"models[{number}]")
        self.net = copy.deepcopy(models[0])
        stacked = [torch.stack([same[0].tensor.detach() for same in leaf]) for leaf in zip(*leaves, strict=True)]
        _put(_leaves(self.net), [_like(leaf[0].tensor, t) for leaf, t in zip(leaves[0], stacked, strict=True)])

    def __len__(self) -> int:
        return self._size

    def extra_repr(self) -> str:
        """Tell S."""
        return f"{self._size} models"

    def forward(self, *inputs: Any, shared: bool = False) -> Any:
        """Return what each model gives for its slice of the inputs, or with ``shared`` all for the same inputs."""
        return self.map(_call, *inputs, in_dims=None if shared else 0)

    def map(self, function: Callable[..., Any], *inputs: Any, in_dims: int | tuple[int | None, ...] | None = 0) -> Any:
        """Return ``function(model_s, *inputs_s)`` for all s, its tensors stacked along the first axis.

        This is how to reach a method other than ``forward``, or to map a loss together with the model.

        Args:
            function: sees one model and one slice of each input.
            inputs: tensors, or containers of them.
            in_dims: the axis of seeds of each input, None where all models get the same, as in ``torch.vmap``.

        Example:
            >>> from torchstone.models import MLP
            >>> nets = stack([MLP(4, 2, hidden=(8,)) for _ in range(3)])
            >>> nets.map(lambda net, x: net.features(x), torch.ones(5, 4), in_dims=None).shape
            torch.Size([3, 5, 8])
        """
        if isinstance(in_dims, int | None):
            in_dims = (in_dims,) * len(inputs)
        leaves = _leaves(self.net)
        stacked = [leaf[0].tensor for leaf in leaves]

        def one(slices: list[Tensor], *inputs: Any) -> tuple[Any, dict[int, Tensor]]:
            with _holding(leaves, slices):
                out = function(self.net, *inputs)
                now = [leaf[0].tensor for leaf in leaves]
            # A buffer may have been updated in place, which reaches the stacked one, or replaced, which does not.
            return out, {i: new for i, (new, old) in enumerate(zip(now, slices, strict=True)) if new is not old}

        mapped = torch.vmap(one, (0, *in_dims), randomness="different", chunk_size=self.chunk_size)
        with _plain_attention():
            out, replaced = mapped(stacked, *inputs)
        for i, new in replaced.items():
            stacked[i].detach().copy_(new.detach())
        return out

    def predict(self, x: Shaped[Tensor, "n ..."], *, batch_size: int = 1024) -> Float[Tensor, "seeds n c"]:
        """Return what each model gives for the rows of ``x``, in evaluation mode and without gradients.

        Example:
            >>> stack([nn.Linear(4, 2) for _ in range(3)]).predict(torch.ones(5, 4)).shape
            torch.Size([3, 5, 2])
        """
        check_int("batch_size", batch_size, 1)
        if not len(x):
            raise ValueError("x must have at least 1 row, but has 0")
        device = _leaves(self.net)[0][0].tensor.device
        with evaluating(self), torch.no_grad():
            return torch.cat([self(part.to(device), shared=True).to(x.device) for part in x.split(batch_size)], 1)

    def unstack(self) -> list[M]:
        """Return the models as ordinary ones that share no memory with this."""
        models = []
        for s in range(self._size):
            with self._slice(s):
                models.append(copy.deepcopy(self.net))
        return models

    def state_dicts(self) -> list[dict[str, Any]]:
        """Return an ordinary ``state_dict`` per model, a copy, that the original class loads."""
        states = []
        for s in range(self._size):
            with self._slice(s):
                states.append(self.net.state_dict())
        return states

    @contextmanager
    def _slice(self, s: int) -> Iterator[None]:
        """Inside this block ``self.net`` is an ordinary model with copies of the s-th slices."""
        leaves = _leaves(self.net)
        slices = [_like(leaf[0].tensor, leaf[0].tensor.detach()[s].clone()) for leaf in leaves]
        with _holding(leaves, slices):
            yield


def stack(models: Sequence[M], *, chunk_size: int | None = None) -> StackedModule[M]:
    """Return the models as one :class:`StackedModule`, whose ``unstack()`` gives them back.

    Raises:
        ValueError: if there is no model, or they are not of one architecture.

    Example:
        >>> stack([nn.Linear(4, 2) for _ in range(3)]).unstack()[0]
        Linear(in_features=4, out_features=2, bias=True)
    """
    return StackedModule(models, chunk_size=chunk_size)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Inside this block attention is computed by its definition; torch's fused forms cannot be mapped."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _call(net: nn.Module, *inputs: Any) -> Any:
    return net(*inputs)


def _leaves(module: nn.Module) -> list[_Leaf]:
    """Return the places of each parameter and buffer."""
    found: dict[int, _Leaf] = {}
    for prefix, inner in module.named_modules():
        for kept in (inner._parameters, inner._buffers):
            for key, tensor in kept.items():
                if tensor is not None:
                    found.setdefault(id(tensor), []).append(_Place(f"{prefix}.{key}" if prefix else key, kept, key))
    return list(found.values())


def _like(tensor: Tensor, values: Tensor) -> Tensor:
    """Return ``values`` as what ``tensor`` is: a parameter, frozen or not, or a buffer."""
    return nn.Parameter(values, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def _put(leaves: list[_Leaf], tensors: Sequence[Tensor]) -> None:
    """Let the places of each leaf hold another tensor."""
    for leaf, tensor in zip(leaves, tensors, strict=True):
        for place in leaf:
            place.kept[place.key] = tensor


@contextmanager
def _holding(leaves: list[_Leaf], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Inside this block the places of each leaf hold another tensor."""
    before = [leaf[0].tensor for leaf in leaves]
    _put(leaves, tensors)
    try:
        yield
    finally:
        _put(leaves, before)


def _check_alike(first: nn.Module, other: nn.Module, name: str) -> None:
    """Raise ``ValueError`` at the first thing in which two models differ."""
    for here, there in ((_layers(first), _layers(other)), (_tensors(first), _tensors(other))):
        for key in {**here, **there}:
            ours, theirs = here.get(key, "nothing"), there.get(key, "nothing")
            if ours != theirs:
                raise ValueError(
                    f"models must be of one architecture, but {key!r} is {theirs} in {name} and {ours} in models[0]"
                )


def _layers(module: nn.Module) -> dict[str, str]:
    """Describe each layer by its type and options."""
    return {
        name: re.sub(" at 0x[0-9a-f]+", "", f"{type(layer).__name__}({layer.extra_repr()})")
        for name, layer in module.named_modules()
    }


def _tensors(module: nn.Module) -> dict[str, str]:
    """Describe each parameter and buffer."""
    found: dict[str, str] = {}
    for leaf in _leaves(module):
        tensor = leaf[0].tensor
        if is_lazy(tensor):
            raise ValueError(f"models must have all their parameters, but {leaf[0].name!r} is lazy: call each once")
        kind = "a buffer"
        if isinstance(tensor, nn.Parameter):
            kind = "a parameter" if tensor.requires_grad else "a frozen parameter"
        found[leaf[0].name] = f"{kind} of shape {tuple(tensor.shape)}, {tensor.dtype}, on {tensor.device}"
        found |= {place.name: f"tied to {leaf[0].name!r}" for place in leaf[1:]}
    return found
