"""The documentation keeps its word: its code runs, its numbers are computed, every public name has its place."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import sys
from pathlib import Path
from statistics import NormalDist
from types import ModuleType

import pytest

from tests.pages import ROOT, Reader, Shown, blocks, quick
from torchstone.bench import claims, evidence
from torchstone.bench.statistics import compare, critical_wins, decide, e_value, operating_characteristics
from torchstone.bench.statistics.verdict import Verdict
from torchstone.bench.store.schema import metadata

DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md") if "_build" not in page.parts)
METHODS = [page for page in PAGES if page.startswith("methods/") and page != "methods/index.md"]


@pytest.fixture(scope="module", autouse=True)
def _docs_on_path():
    folders = [str(DOCS), str(DOCS / "_ext")]
    sys.path[:0] = folders
    yield
    for folder in folders:
        sys.path.remove(folder)


# ---------------------------------------------------------------- pages


@pytest.mark.study
@pytest.mark.parametrize("name", sorted(set(PAGES) - set(METHODS)))
def test_the_code_of_a_page_runs(name: str, tmp_path: Path) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")
    for shown in Reader(tmp_path, quick).read(page):
        check_shown(shown)


@pytest.mark.parametrize("name", METHODS)
def test_the_code_of_a_method_can_be_copied(name: str) -> None:
    """Their code speaks of the reader's own data and network, so what is tested is what it takes from here."""
    for block in blocks((DOCS / name).read_text(encoding="utf-8")):
        if block.kind == "python":
            parsed = ast.parse(block.code)
            imports: list[ast.stmt] = [node for node in parsed.body if isinstance(node, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(imports, []), name, "exec"), {})
        elif block.kind == "bash":
            assert all(line.split()[0] in ("torchstone", "pip") for line in block.code.replace("\\\n", "").splitlines())


def check_shown(shown: Shown) -> None:
    """A page shows what the command prints; where the tests run less, what is claimed and how it is laid out."""
    if "--budget" in shown.command:
        assert _claims(shown.block.code) == _claims(shown.printed), shown.command
    elif "result.json" not in shown.command and not shown.command.startswith("python"):
        assert _plain(shown.block.code) == _plain(shown.printed), shown.command


def _claims(text: str) -> list[str]:
    return re.findall(r"^\w+ of \S+ is \w+ than .*$", text, re.MULTILINE)


def _plain(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def test_what_pages_leave_out_needs_what_a_test_cannot_have() -> None:
    left_out = [
        block.skip for name in PAGES for block in blocks((DOCS / name).read_text(encoding="utf-8")) if block.skip
    ]
    assert set(left_out) <= {"installs", "needs a GPU", "needs a GPU and CIFAR-10", "needs a PostgreSQL server"}


# ---------------------------------------------------------------- numbers


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def protocol_facts() -> list[str]:
    """Every sentence of the protocol that holds a number, with the number computed."""
    peeking, three_seeds = (importlib.import_module(f"figures.{name}") for name in ("peeking", "three_seeds"))
    coin, often, clear = (operating_characteristics(29, p) for p in (0.5, 0.75, 0.9))
    six = decide([1.0] * 6)
    return [
        f"by luck alone in {_percent(three_seeds.share_apart())} of such",
        f"ahead in 60 % of all runs, the mean of three seeds still puts it behind in "
        f"{_percent(NormalDist().cdf(-(3**0.5) * NormalDist().inv_cdf(0.6)))} of",
        f"in {_percent(peeking.interval_error(range(6, 30)))} of studies instead of "
        f"{_percent(peeking.interval_error([29]))}.",
        f"Six wins of six make {e_value(6, 6):.1f}; five of five make {e_value(5, 5):.1f}",
        f"one side has the {critical_wins(29)} wins that decide a comparison of 29",
        f"ends with *reproduced* is {_percent(coin.ahead, 1)}, and the same for *refuted*",
        f"If P = 0.9, it ends with *reproduced* in {_percent(clear.ahead, 2)} of studies, "
        f"after {clear.expected_n:.0f} replicates on average",
        f"At P = 3/4 that is {_percent(often.ahead)}, after {often.expected_n:.0f} replicates",
        f"P = 0.6 it is {_percent(operating_characteristics(29, 0.6).ahead)}",
        f"reaches from {six.interval[0]:.2f} to {six.interval[1]:.0f}",
    ]


def test_the_numbers_of_the_protocol_are_computed() -> None:
    page = " ".join((DOCS / "protocol.md").read_text(encoding="utf-8").split())
    assert [fact for fact in protocol_facts() if fact not in page] == []


def test_a_lead_that_does_not_matter_takes_59_replicates() -> None:
    def found(n: int) -> bool:
        verdicts = [decide([1.0] * k + [0.0] * (n - k), n_min=n, n_max=n).verdict for k in range(n // 2, n)]
        return Verdict.NOT_MEANINGFUL in verdicts

    assert next(n for n in range(6, 100) if found(n)) == 59
    assert "at least 59 of them" in (DOCS / "protocol.md").read_text(encoding="utf-8")


def test_in_the_picture_of_pairs_every_line_rises() -> None:
    ours, theirs = importlib.import_module("figures.pairing").scores()
    assert (ours > theirs).all()
    assert compare(ours, theirs, paired=False).verdict == Verdict.NOT_SIGNIFICANT
    assert compare(ours, theirs).verdict == Verdict.REPRODUCED


def test_the_tutorial_tells_what_its_commands_printed() -> None:
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    shown = [block.code for block in blocks(page) if block.kind == "text"]
    verdicts = [re.search(r": . (.+)$", text.splitlines()[0]) for text in shown[:5]]
    assert [found and found[1] for found in verdicts] == [
        "too few replicates",
        "reproduced",
        "refuted",
        "refuted",
        "refuted",
    ]
    effects = [
        re.findall(r"mixup is higher than that of elr.*\n.*?(\S+) \[(\S+), (\S+)\]$", s, re.M) for s in shown[2:4]
    ]
    (one, low, high), (two, other_low, other_high) = ([float(x) for x in found[0]] for found in effects)
    assert not low <= two <= high
    assert not other_low <= one <= other_high
    assert "sop    lr=0.294" in shown[3]


def test_all_tables_of_the_store_are_explained() -> None:
    page = (DOCS / "howto" / "read-the-store.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(metadata.tables)


def test_all_verdicts_and_kinds_of_claims_are_explained() -> None:
    page = (DOCS / "protocol.md").read_text(encoding="utf-8")
    assert [v for v in Verdict if not re.search(rf"^\| {v} \|", page, re.MULTILINE)] == []
    study = (DOCS / "howto" / "add-a-study.md").read_text(encoding="utf-8")
    assert [kind for kind in claims.__all__ if kind != "Claim" and f"`{kind}`" not in study] == []


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("name", re.findall(r"\{picture\} (\w+)", (DOCS / "protocol.md").read_text(encoding="utf-8")))
def test_a_picture_follows_the_theme_and_has_words(name: str) -> None:
    picture = importlib.import_module(f"figures.{name}").draw()
    assert 'role="img"' in picture.svg
    assert f"<title>{picture.title}</title>" in picture.svg
    assert picture.description.endswith(".")
    assert not re.findall(r"(?:stroke|fill): #(?!ffffff)\w+", picture.svg), "a colour that ignores the theme"
    assert "var(--picture-" in picture.svg


def test_curves_are_those_of_the_evidence() -> None:
    curves = importlib.import_module("figures.curves")
    picture = curves.draw("whitening", "digits", ["accuracy"], ["none", "full"], ["20+20", "30+31"])
    stored = evidence.load("whitening")
    assert stored is not None
    means = stored["means"]["digits"]["accuracy"]
    for arm in ("none", "full"):
        said = ", ".join(f"{case} {means[f'{arm}/{case}'][0]:.3g}" for case in ("20+20", "30+31"))
        assert f"{arm}: {said}" in picture.description
    assert not re.findall(r"(?:stroke|fill): #(?!ffffff)\w+", picture.svg), "a colour that ignores the theme"
    with pytest.raises(KeyError):
        curves.draw("whitening", "digits", ["accuracy"], ["nobody"], ["20+20"])


# ---------------------------------------------------------------- reference


def _public_api() -> ModuleType:
    return importlib.import_module("public_api")


def test_every_public_name_has_a_page() -> None:
    api = _public_api()
    reference = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.rst"))
    pages = re.findall(r"^\.\. public-api:: (\S+)", reference, re.MULTILINE)
    assert len(pages) == len(set(pages))
    described = {module for package in pages for module in api.described_by(package)}
    assert sorted(home for home in set(api.homes().values()) if home.rpartition(".")[0] not in described) == []


def test_a_name_left_out_is_noticed() -> None:
    api = _public_api()
    names = set(api.homes().values())
    assert "torchstone.noise.SparseOverparamLoss" in names
    assert api.undescribed(names) == []
    assert api.undescribed(names - {"torchstone.noise.SparseOverparamLoss"}) == ["torchstone.noise.SparseOverparamLoss"]


def test_an_object_is_described_once_under_its_shortest_path() -> None:
    homes = _public_api().homes()
    assert homes["torchstone.noise.sop.SparseOverparamLoss"] == "torchstone.noise.SparseOverparamLoss"
    assert homes["torchstone.api.compare"] == "torchstone.compare"
    assert homes["torchstone.noise.sop.balance_term"] == "torchstone.noise.sop.balance_term"


def test_the_command_line_reference_has_all_commands_and_options() -> None:
    command_line = importlib.import_module("command_line")
    text = command_line.reference()
    for name, command in command_line.commands():
        assert f".. program:: {name}\n" in text
        for parameter in command.params:
            if parameter.param_type_name == "option" and "--help" not in parameter.opts:
                assert parameter.opts[-1] in text


def test_blocks_of_a_docstring_become_fields() -> None:
    as_fields = importlib.import_module("docstrings").as_fields
    assert as_fields(["Shapes: a (n,);", "    more.", "Cost: O(n).", "", "Example:"]) == [
        *["", ":Shapes: a (n,);", "    more.", ""],
        *["", ":Cost: O(n).", ""],
        *["", "Example:"],
    ]
    assert as_fields(["Source:", "    A.", "", "    B.", "Raises:", "    E: x"]) == [
        *["", ":Source: A.", "", "    B.", ""],
        *["Raises:", "    E: x"],
    ]


# ---------------------------------------------------------------- examples of docstrings


def _modules() -> list[str]:
    from tests import pages  # the package is found without importing what needs extras

    package = Path(pages.ROOT, "src", "torchstone")
    names = []
    for file in sorted(package.rglob("*.py")):
        if ">>>" in file.read_text(encoding="utf-8") and "_templates" not in file.parts:
            parts = file.relative_to(package.parent).with_suffix("").parts
            names.append(".".join(parts).removesuffix(".__init__"))
    return names


@pytest.mark.parametrize("name", _modules())
def test_the_examples_of_docstrings_are_true(name: str) -> None:
    module = importlib.import_module(name)
    tests = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]
    assert tests
    for test in tests:
        report: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
        runner.run(test, out=report.append)
        assert not runner.failures, f"{test.name} in {inspect.getsourcefile(module)}\n{''.join(report)}"
