"""The identity of an arm's code: change what a run computes and it is run again, change its prose and it is not.

A fingerprint hashes syntax trees, not text, of the module that defines the arm's function and of all modules that it
imports, transitively, as far as they belong to the methods: ``torchstone``'s fields and floors, and the user's own
package or folder. Imports are found in the source, those inside functions too; nothing is imported to find them.
Names that a package merely re-exports are looked through, so a new method in a package does not touch its neighbours.

Not in it, because none of it changes what a run computes:

* comments, docstrings, formatting, and what stands under ``if TYPE_CHECKING:``;
* claims, keywords ``claims=``, ``premises=`` and ``about=``, and the arguments of ``Arm``, ``Experiment``, ``Study``
  and ``Track`` but ``shared=`` (hyper-parameters, sizes and data are in the identity of the run in their own right);
* the bench itself, the command line, argument checks, and other libraries (recorded in the environment instead).

A function without a source file (typed into a prompt or a notebook) is known by its byte code, and so are the
functions and plain values that it takes from its own module; byte code differs between Python versions.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torchstone.bench.identity import canonical_json
from torchstone.bench.syntax import Module, read_module
from torchstone.errors import StudyError

__all__ = ["fingerprint", "modules_of"]
