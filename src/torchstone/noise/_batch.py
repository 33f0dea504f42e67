"""What the losses of this package share: checks of a batch, the compute dtype, and rows exchanged between processes."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import Tensor

from torchstone._checks import check_index, check_length, check_ndim

__all__ = ["all_gather_rows", "check_batch", "check_sample_index", "upcast"]


def upcast(logits: Tensor) -> Tensor:
    """Return half-precision logits as float32, others unchanged: the losses take logarithms of small probabilities."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def check_batch(logits: Tensor, target: Tensor, num_classes: int | None = None) -> None:
    """Raise unless ``logits`` are (batch, classes) floats and ``target`` (batch,) class numbers."""
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, but have dtype {logits.dtype}")
    check_ndim("logits", logits, 2, "(batch, classes)")
    if num_classes is not None and logits.shape[1] != num_classes:
        raise ValueError(f"logits must have {num_classes} columns (num_classes), but have {logits.shape[1]}")
    _check_numbers("target", target, logits.shape[1])
    check_length("target", target, logits.shape[0], "logits")


def check_sample_index(index: Tensor, length: int, num_samples: int) -> None:
    """Raise unless ``index`` is (batch,) dataset positions; warn where a CPU index names a sample twice."""
    _check_numbers("index", index, num_samples)
    check_length("index", index, length, "logits")
    if _values_are_cheap(index) and index.unique().numel() < index.numel():
        warnings.warn("index names a sample twice in one batch: both visits count", UserWarning, stacklevel=3)


def _check_numbers(name: str, numbers: Tensor, size: int) -> None:
    if _values_are_cheap(numbers):
        check_index(name, numbers, size)
    elif numbers.dtype != torch.int64:
        raise TypeError(f"{name} must have dtype torch.int64, but has {numbers.dtype}")
    else:
        check_ndim(name, numbers, 1, "(batch,)")


def _values_are_cheap(tensor: Tensor) -> bool:
    # Reading a value waits for the accelerator, and breaks a compiled graph; there the gather itself asserts the range.
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def all_gather_rows(rows: Tensor, group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """Return the ``rows`` of every process, in order of rank; processes may hold different numbers of rows."""
    world = dist.get_world_size(group)
    counts = [torch.empty(1, dtype=torch.int64, device=rows.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device), group=group)
    lengths = [int(count) for count in counts]
    padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(gathered, padded, group=group)
    return [part[:length] for part, length in zip(gathered, lengths, strict=True)]
