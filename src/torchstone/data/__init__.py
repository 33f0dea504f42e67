"""Data sets in memory, readers of the field's file formats, splits, and generators of label noise.

:func:`load` is the front door: a known set by name, the user's own files by path, or the user's own code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchstone._imports import lazy_front

if TYPE_CHECKING:
    from torchstone.data.annotators import AnnotatorDataset, answer_table, majority_vote, simulate_answers
    from torchstone.data.arrays import from_arrays, from_dataset
    from torchstone.data.files import FileRow, data_root, get, verify
    from torchstone.data.label_noise import (
        asymmetric_noise,
        instance_dependent_noise,
        pair_flip_noise,
        symmetric_noise,
        transition_matrix,
        transition_noise,
    )
    from torchstone.data.published_scores import unreproducible_scores
    from torchstone.data.registry import OWN_DATA_HELP, DataRow, available, load
    from torchstone.data.signals import mnist1d
    from torchstone.data.splits import carve_validation, out_of_bootstrap, random_split_indices
    from torchstone.data.tensors import IndexedDataset, TensorData

__all__ = [
    "OWN_DATA_HELP",
    "AnnotatorDataset",
    "DataRow",
    "FileRow",
    "IndexedDataset",
    "TensorData",
    "answer_table",
    "asymmetric_noise",
    "available",
    "carve_validation",
    "data_root",
    "from_arrays",
    "from_dataset",
    "get",
    "instance_dependent_noise",
    "load",
    "majority_vote",
    "mnist1d",
    "out_of_bootstrap",
    "pair_flip_noise",
    "random_split_indices",
    "simulate_answers",
    "symmetric_noise",
    "transition_matrix",
    "transition_noise",
    "unreproducible_scores",
    "verify",
]

# Searched in this order on first use of a name; the first two need no torch, so listing and download do not either.
_MODULES = (
    "registry",
    "files",
    "tensors",
    "splits",
    "label_noise",
    "arrays",
    "annotators",
    "signals",
    "published_scores",
)
__getattr__, __dir__ = lazy_front(__name__, __all__, _MODULES)
