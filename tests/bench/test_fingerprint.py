from __future__ import annotations

import ast
import functools
import importlib
import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.fakes import Normal, silent
from torchstone.bench import fingerprint as module
from torchstone.bench import syntax
from torchstone.bench.fingerprint import fingerprint, sources
from torchstone.bench.syntax import read_source
from torchstone.errors import StudyError

STUDY = '''
"""A study."""
from __future__ import annotations
from typing import TYPE_CHECKING
import math
from torchstone.bench import Arm, Experiment, Higher, Study, Within as Equal
from torchstone import bench
if TYPE_CHECKING:
    from elsewhere import Net

LIMIT = 0.1  # a comment

def train(cell, *, lr=0.1, text=""):
    """Train."""
    class Net:
        """A net."""
    rate = f"{lr:.3f} of {math.pi!r}"
    return cell.fit(lr, about="x"), rate, (lambda x, /, *y: [*y, x])

def claims(metric):
    """State."""
    return (Higher(metric, "a", "b", primary=True), *(Equal(metric, a, "b", by=LIMIT) for a in "cd"))

EXTRA = (bench.Lower("loss", "a", "b"),)
STUDY = Study("s", (Experiment(
    "main", {"a": Arm(train, hyper={"lr": 0.1}), "b": Arm(train)}, claims("accuracy"), shared=train,
),), about="About.")
'''


@pytest.fixture
def digest(tmp_path: Path) -> Callable[[str], str]:
    """Digest of a source text."""

    def of(text: str) -> str:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.py"
        path.write_text(text)
        return read_source(path).digest

    return of


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A study."""', ""),
        ('"""Train."""', '"""Train well."""'),
        ('"""A net."""', '"""Any net."""\n        """And more."""'),
        ("  # a comment", ""),
        ("[*y, x]", "[\n        *y,\n        x,\n    ]"),
        ("import Net", "import Net, Other"),
        ('"a", "b", primary=True', '"a", "c", by=0.5, text="It is better."'),
        ('Higher(metric, "a", "b", primary=True), ', "*[Higher(metric, a, b) for a, b in PAIRS], "),
        ("by=LIMIT", "by=2 * LIMIT"),
        ('for a in "cd"', 'for a in "cdef" if a'),
        ('EXTRA = (bench.Lower("loss", "a", "b"),)', ""),
        ("import Arm, Experiment, Higher", "import Arm, Ratio, Experiment, Higher"),
        ('about="About."', 'about="Another."'),
        ('"b": Arm(train)', '"c": Arm(train, role="rival"), "b": Arm(train)'),
        ('claims("accuracy"), shared', 'claims("loss"), replicates=(3, 9), tries=2, shared'),
        ('about="x"', 'about="y"'),
    ],
)
def test_prose_and_claims_change_nothing(old: str, new: str, digest: Callable[[str], str]) -> None:
    assert old in STUDY
    assert digest(STUDY) == digest(STUDY.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lr=0.1, text", "lr=0.2, text"),
        ("LIMIT = 0.1", "LIMIT = 0.2"),
        (":.3f", ":.4f"),
        ("!r", "!s"),
        (" of ", " by "),
        ("import math", "import cmath as math"),
        ("/, ", ""),
        ("[*y, x]", "[x, *y]"),
        ("shared=train", "shared=claims"),
        ("cell.fit(lr,", "cell.fit(lr, claim=True,"),
        ("Higher, Study", "Study\nfrom rivals import Higher"),  # someone else's Higher is no claim
    ],
)
def test_code_changes_the_hash(old: str, new: str, digest: Callable[[str], str]) -> None:
    assert old in STUDY
    assert digest(STUDY) != digest(STUDY.replace(old, new, 1))


def test_a_class_that_is_merely_called_like_a_claim_counts(digest: Callable[[str], str]) -> None:
    text = "from mine import Ratio\nscale = Ratio({})\n"
    assert digest(text.format(1)) != digest(text.format(2))


@pytest.mark.parametrize(
    "text",
    [
        "from torchstone.bench import *\nc = Higher({})\n",
        "import torchstone.bench\nc = tuple(torchstone.bench.Higher({}) for x in y)\n",
        "import torchstone.bench.claims as c\nd = (c.Trend({}),) + (c.Ratio(0),)\n",
        "from torchstone.bench import Arm as A\na = A(1, hyper={})\n",
    ],
)
def test_the_bench_is_known_by_any_name(text: str, digest: Callable[[str], str]) -> None:
    assert digest(text.format(1)) == digest(text.format(2))


def test_positions_of_none_matter(digest: Callable[[str], str]) -> None:
    assert len({digest(text) for text in ("x[1:]", "x[:1]", "x[::1]", "{**a}", "f(*a)", "f(**a)", "x = None")}) == 7


def test_the_hash_of_a_text_is_known(digest: Callable[[str], str]) -> None:
    """Known once and for all, and the same from Python 3.11 to 3.13, whose trees differ."""
    text = STUDY + (
        "async def f(*, a: int = 1, **k):\n"
        "    match a:\n        case [1, *rest] if (n := len(rest)): return f'{n=}' 'b' f'' f'{a:>{n}}' f'{a:}'\n"
        "        case {'x': None, **more} | more: del more\n"
        "    async with a as b, c: yield 1j, b'\\xff', ..., 'ünï\\ud800', 1_000, -2.5e-3, not a\n"
        "    global g; x: int; x @= yield; assert a, 'm'\n"
        "    try: raise E from None\n    except* (A, B) as e: pass\n    else: pass\n"
        "@d\nclass C(B, metaclass=M): [x async for x in y if z for w in x]\n"
    )
    assert digest(text) == "2f67b8527af76daee30831502260385c"


def test_it_does_not_matter_where_a_version_splits_an_f_string() -> None:
    whole, split = ast.parse("f'ab{x}'"), ast.parse("f'ab{x}'")
    for node in ast.walk(split):
        if isinstance(node, ast.JoinedStr):
            node.values[:1] = [ast.Constant("a"), ast.Constant("b"), ast.Constant("")]
    assert ast.dump(whole) != ast.dump(split)
    assert syntax._Writer(whole).text(whole) == syntax._Writer(split).text(split)


# ---------------------------------------------------------------- which files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of a user's own, on the path."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


RUN = "def run(cell): ...\n"


def test_a_script_takes_what_it_imports_from_its_folder(folder: Path) -> None:
    _write(
        folder,
        {
            "my_study": "import numpy, json\nimport my_net as net\ndef run(cell):\n    from my_loss import loss\n",
            "my_net": "from my_layers.conv import Conv\n",
            "my_layers/conv": "import my_study\nclass Conv: ...\n",  # a cycle
            "my_loss": "from my_other import loss\nloss.weight = 2\n",
            "my_other": "def loss(): ...\n",
            "my_last": "",
        },
    )
    run = importlib.import_module("my_study").run
    assert set(sources(run)) == {"my_study", "my_net", "my_layers.conv", "my_loss", "my_other"}


@pytest.mark.parametrize(("edited", "changes"), [("my_study", True), ("my_loss", True), ("my_other", False)])
def test_an_edit_is_seen_where_it_matters(edited: str, changes: bool, folder: Path) -> None:
    _write(folder, {"my_study": "import my_loss\n" + RUN, "my_loss": "a = 1\n", "my_other": ""})
    run = importlib.import_module("my_study").run
    before = fingerprint(run)
    path = folder / f"{edited}.py"
    path.write_text(path.read_text() + "b = 22\n")
    assert (fingerprint(run) != before) == changes


def test_a_package_takes_its_own_modules_through_relative_imports(folder: Path) -> None:
    _write(
        folder,
        {
            "pack/__init__": "from .core import loss\nfrom . import extra\nfrom .unused import nothing\n",
            "pack/core": "def loss(): ...\n",
            "pack/extra": "x = 1\n",
            "pack/unused": "def nothing(): ...\n",
            "pack/sub/__init__": "",
            "pack/sub/study": "from .. import extra, loss\nfrom .near import *\nfrom ..lazy import z\n" + RUN,
            "pack/sub/near": "y = 1\n",
            "pack/lazy/__init__": "def __getattr__(name):\n    from pack.lazy.deep import z\n    return z\n",
            "pack/lazy/deep": "z = 1\n",
            "near": "",
        },
    )
    run = importlib.import_module("pack.sub.study").run
    assert set(sources(run)) == {
        *("pack.sub.study", "pack.extra", "pack.core", "pack.sub.near"),  # re-exports are looked through
        *("pack.lazy", "pack.lazy.deep"),  # unless nobody can know what is behind
    }


@pytest.fixture
def house(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small torchstone to stand for the real one."""
    _write(
        folder,
        {
            "torchstone/__init__": "",
            "torchstone/noise/__init__": "from torchstone.noise.sop import Sop\nfrom torchstone.noise.gce import Gce\n",
            "torchstone/noise/sop": "from torchstone._checks import c\nfrom torchstone.models import MLP\nclass Sop: 0",
            "torchstone/noise/gce": "class Gce: ...",
            "torchstone/models/__init__": "from torchstone.models.mlp import MLP",
            "torchstone/models/mlp": "from torchstone.errors import StudyError\nclass MLP: ...",
            "torchstone/errors": "class StudyError(Exception): ...",
            "torchstone/_checks": "def c(): ...",
            "torchstone/bench/__init__": "from torchstone.bench.study import Arm",
            "torchstone/bench/study": "class Arm: ...",
            "my_study": "def run(cell):\n    from torchstone.noise import Sop\n    from torchstone.bench import Arm\n",
            "my_other": "import torchstone.noise\n" + RUN,
        },
    )
    monkeypatch.setattr(module, "TORCHSTONE", folder / "torchstone")
    monkeypatch.setattr(module, "HERE", module._Home(folder, "torchstone"))
    return folder


def test_methods_count_but_not_their_neighbours_nor_the_bench(house: Path) -> None:
    run = importlib.import_module("my_study").run
    assert set(sources(run)) == {"my_study", "torchstone.noise.sop", "torchstone.models.mlp"}


def test_a_whole_package_counts_with_all_it_imports(house: Path) -> None:
    run = importlib.import_module("my_other").run
    noise = {"torchstone.noise", "torchstone.noise.sop", "torchstone.noise.gce"}
    assert set(sources(run)) == {"my_other", *noise, "torchstone.models.mlp"}


def test_arms_of_this_library() -> None:
    from torchstone.noise import GeneralizedCrossEntropy

    assert set(sources(GeneralizedCrossEntropy)) >= {"torchstone.noise.gce"}
    assert not any(name.startswith(("torchstone.bench", "torchstone.noise.sop")) for name in sources(Normal(0.5)))
    assert set(sources(silent)) == {"tests.fakes"}


def test_libraries_have_a_version_instead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(folder, {"site-packages/plug": "import other_library\n" + RUN, "site-packages/other_library": ""})
    monkeypatch.syspath_prepend(folder / "site-packages")
    run = importlib.import_module("plug").run
    assert set(sources(run)) == {"plug"}  # an installed method is the user's own, but what lies beside it is not
    assert set(sources(functools.partial(run, torch.nn.functional.relu, torch.relu, torch.nn.ReLU))) == {"plug"}
    assert set(sources(functools.partial(silent, run))) == {"tests.fakes"}


def test_a_file_that_is_not_python_is_named(folder: Path) -> None:
    _write(folder, {"my_study": "def run(cell):\n    import my_draft\n", "my_draft": "def (:\n"})
    with pytest.raises(StudyError, match=r"my_draft.py cannot be read as Python"):
        fingerprint(importlib.import_module("my_study").run)


# ---------------------------------------------------------------- callables


@dataclass(frozen=True)
class Trainer:
    loss: Callable[..., Any] = silent
    depth: int = 2
    options: tuple[Any, ...] = ()
    cache: Any = field(default=None, compare=False)

    def __call__(self, cell: Any) -> None: ...


def test_arguments_and_fields_are_part_of_the_code() -> None:
    trainers = [Trainer(), Trainer(depth=3), Trainer(loss=max), Trainer(options=({"f": min},))]
    partials = [functools.partial(silent), functools.partial(silent, a=1), functools.partial(silent, a=2)]
    assert len({fingerprint(run) for run in (*trainers, *partials)}) == 7
    assert fingerprint(replace(trainers[0], cache=object())) == fingerprint(trainers[0])


def test_functions_in_fields_bring_their_modules(folder: Path) -> None:
    _write(folder, {"my_loss": "def loss(): ...\n"})
    loss = importlib.import_module("my_loss").loss
    for run in (Trainer(loss), Trainer(options=({"f": loss},)), Trainer(functools.partial(loss, 1))):
        assert set(sources(run)) >= {__name__, "my_loss"}


@pytest.mark.parametrize(
    "run", [lambda cell: None, Trainer(loss=lambda: None), Trainer(options=(torch.ones(1),)), torch.nn.ReLU()]
)
def test_what_a_worker_could_not_find_again_is_refused(run: Any) -> None:
    with pytest.raises(StudyError, match="identity"):
        fingerprint(run)


# ---------------------------------------------------------------- notebooks

CELL = """
RATE = 0.1
TABLE = object()
def helper(x):
    return x * RATE in {0, 8}
class Base:
    @property
    def size(self): return 5
class Net(Base):
    width = 3
    def forward(self): return Net
    @staticmethod
    def make(): return 6
@torch.no_grad()
def test(x, margin=7): return x > 8
@torch.no_grad()
def run(cell, depth=2):
    "Prose."
    return [helper(i) + 1 for i in cell], Net, TABLE, silent, test
"""


def _typed_in(text: str) -> Callable[..., Any]:
    """The function ``run`` of a notebook."""
    notebook = ModuleType("__main__")
    vars(notebook).update(silent=silent, torch=torch)
    exec(compile(text, "<cell 1>", "exec"), vars(notebook))
    return notebook.run


@pytest.fixture
def _no_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))


@pytest.mark.usefixtures("_no_script")
@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("Prose.", "Other prose.", False),
        ("TABLE = object()", "TABLE = object(), 1", False),
        ("RATE = 0.1", "RATE = 0.2", True),
        ("x * RATE", "x / RATE", True),
        ("{0, 8}", "{0, 9}", True),
        ("{0, 8}", "{8, 0}", False),  # they collide, so their order in the set is that in which they came
        ("+ 1", "+ 2", True),
        ("width = 3", "width = 4", True),
        ("return Net\n", "return None\n", True),
        ("depth=2", "depth=3", True),
        ("return 5", "return 6", True),
        ("return 6", "return 7", True),
        ("margin=7", "margin=8", True),
        ("x > 8", "x > 9", True),
    ],
)
def test_a_notebook_is_known_by_its_byte_code(old: str, new: str, changes: bool) -> None:
    assert old in CELL
    assert (fingerprint(_typed_in(CELL)) != fingerprint(_typed_in(CELL.replace(old, new)))) == changes


@pytest.mark.usefixtures("_no_script")
def test_a_notebook_brings_the_modules_it_uses() -> None:
    assert "tests.fakes" in sources(_typed_in(CELL))


def test_the_seeds_of_the_bench_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = fingerprint(operator.add)
    other = tmp_path / "seeds.py"
    other.write_text(module.SEEDS.read_text().replace("crc32", "adler32"))
    monkeypatch.setattr(module, "SEEDS", other)
    assert fingerprint(operator.add) != before
