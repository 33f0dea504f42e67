"""Studies and tracks from outside: by entry point, file and module; in this process and in workers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import torchstone
from torchstone import _plugins, api
from torchstone.bench.runner import Options, run_study
from torchstone.bench.store import Store
from torchstone.errors import StudyError, UnknownNameError

STUDY = """
from dataclasses import dataclass
from torchstone.bench import Arm, Experiment, Higher, Outcome, Study

def base(cell):
    return Outcome({"accuracy": 0.5})

def mine(cell):
    return Outcome({"accuracy": 0.75 + cell.replicate / 1000})

ARMS = {"base": Arm(base), "mine": Arm(mine, role="method")}
CLAIMS = (Higher("accuracy", "mine", "base", primary=True),)
STUDY = Study("spam", (Experiment("main", ARMS, CLAIMS, replicates=(6, 6)),))
"""
TRACK = (
    STUDY
    + """
from torchstone.bench import Track

def build(*, data, model=None, arms=None, baseline=None, tries=8):
    return STUDY

TRACK = Track("eggs", ARMS, build)
"""
)


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules and paths of a test end with it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(_plugins, "_texts", {})
    yield
    for name in [name for name in sys.modules if name.startswith("menu")]:
        del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def to(name: str, text: str = STUDY) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return to


@pytest.fixture
def announce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a package that announces something, and whose modules are those that the test writes."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(entries: str, package: str = "menu", group: str = "torchstone.studies") -> None:
        folder = tmp_path / f"{package}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[{group}]\n{entries}\n")

    return install


# ---------------------------------------------------------------- files


def test_a_file_a_path_and_an_object_in_it(write: Callable[..., Path]):
    path = write("menu_file.py", STUDY + "\nOTHER = STUDY\n")
    study = api.find_study(path)
    assert study.name == "spam"
    assert api.find_study(str(path)) is study
    assert api.find_study(f"{path}:OTHER") is study
    assert sys.modules["menu_file"].STUDY is study


def test_a_relative_path_and_a_module_of_the_working_directory(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    write("menu_relative.py")
    monkeypatch.chdir(tmp_path)
    assert api.find_study("menu_relative.py") is api.find_study("menu_relative:STUDY")


def test_a_file_in_a_package_has_its_name_there(write: Callable[..., Path]):
    write("menu_package/__init__.py", "")
    write("menu_package/inner/__init__.py", "")
    write("menu_package/inner/common.py")
    path = write("menu_package/inner/study.py", "from .common import STUDY\n")
    assert api.find_study(path).name == "spam"
    assert "menu_package.inner.study" in sys.modules


def test_an_edited_file_is_read_anew_and_gives_new_runs(write: Callable[..., Path]):
    path = write("menu_edited.py")
    with Store.open(":memory:") as store:
        first = run_study(api.find_study(path), store)
        assert {run.run_id for run in first.runs} == {r.run_id for r in run_study(api.find_study(path), store).runs}
        write("menu_edited.py", STUDY.replace("0.75 +", "0.7500 + 1 +"))
        second = run_study(api.find_study(path), store)
    # The modules of a study are its code: `base` stands in the same file.
    assert not {run.run_id for run in first.runs} & {run.run_id for run in second.runs}
    assert second.means("main", "accuracy")["mine", "default"][0] > 1.7


@pytest.mark.study
def test_worker_processes_find_a_study_from_a_path(write: Callable[..., Path], tmp_path: Path):
    write("menu_helper.py", "GAIN = 0.25\n")
    lazily = STUDY.replace("0.75 +", "0.5 + __import__('menu_helper').GAIN +")
    path = write("menu_workers.py", lazily)
    result = api.run(path, store=tmp_path / "s.db", jobs=2)
    assert str(result.verdict) == "reproduced"
    assert not result.failures
    assert len({run.pid for run in result.runs} - {0}) >= 1


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("menu_none.py", "X = 1\n", "menu_none.py defines no STUDY"),
        ("menu_other.py", STUDY.replace("STUDY =", "MINE ="), "defines no STUDY: did you mean {path}:MINE?"),
        ("menu_wrong.py", "STUDY = 3\n", "STUDY in {path} must be a torchstone.bench.Study, but is a int"),
        ("menu_raises.py", "x = 1\n\nundefined\n", "{path}, line 3: NameError: name 'undefined' is not defined"),
        ("menu_syntax.py", "x = 1\ny = = 2\n", "{path}, line 2: SyntaxError: invalid syntax"),
        ("menu_lacks.py", "import no_such_package\n", "{path}, line 1: ModuleNotFoundError: No module named"),
        ("menu_exits.py", "import sys\nsys.exit(3)\n", "{path}, line 2: it ends the process when it is imported"),
        ("menu_typo.py", STUDY.replace('"mine", "base"', '"mien", "base"'), "line 13: unknown arm 'mien'"),
        ("menu_again.py", STUDY.replace('"spam"', '"sop"'), "is called 'sop', as a paper is"),
        ("random.py", STUDY, "its name 'random' is that of"),
        ("menu-hyphen.py", STUDY, "NAME being letters, digits and _"),
        ("menu.txt", STUDY, "must be called NAME.py"),
    ],
)
def test_one_sentence_says_what_is_wrong_with_a_file(name: str, text: str, sentence: str, write: Callable[..., Path]):
    path = write(name, text)
    with pytest.raises((StudyError, UnknownNameError)) as error:
        api.find_study(path)
    assert sentence.format(path=path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("nowhere.py", "there is no file nowhere.py"),
        ("folder/", "folder/ is a folder"),
        ("no_such_module:STUDY", "there is no module 'no_such_module'"),
        ("math:STUDY", "math defines no STUDY"),
        ("math:pi", "pi in math must be a torchstone.bench.Study, but is a float"),
        ("menu", "did you mean the file menu.py?"),
        ("sopp", "did you mean 'sop'"),
        ("jtt", "no study of 'jtt' yet"),
    ],
)
def test_places_that_are_not_there(
    place: str, sentence: str, write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write("folder/menu.py")
    write("menu.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((StudyError, UnknownNameError)) as error:
        api.find_study(place)
    assert sentence in str(error.value)


def test_two_files_of_one_name_are_not_mixed_up(write: Callable[..., Path]):
    one, other = write("a/menu_twice.py"), write("b/menu_twice.py")
    api.find_study(one)
    with pytest.raises(StudyError, match=r"is that of .*a.menu_twice\.py; rename the file"):
        api.find_study(other)


def test_the_study_of_a_paper_by_its_place():
    assert api.find_study("torchstone.studies.sop:STUDY") is api.find_study("sop")
    assert api.find_study(Path(torchstone.__file__).parent / "studies" / "sop.py") is api.find_study("sop")


# ---------------------------------------------------------------- entry points


def test_an_announced_study_is_found_by_its_name(write: Callable[..., Path], announce: Callable[..., None]):
    write("menu_announced.py")
    announce("spam = menu_announced:STUDY")
    assert api.find_study("spam").name == "spam"
    assert api.run("spam", store=":memory:").study.name == "spam"
    with pytest.raises(UnknownNameError, match="did you mean 'spam'"):
        api.find_study("span")


def test_a_track_is_found_by_name_and_by_place(write: Callable[..., Path], announce: Callable[..., None]):
    path = write("menu_track.py", TRACK)
    announce("eggs = menu_track", group="torchstone.tracks")
    assert api.find_track("eggs") is api.find_track(path)
    assert str(api.compare("eggs", data="any", store=":memory:").verdict) == "reproduced"


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("no_such_module:STUDY", "study 'spam' of menu 1.0: there is no module 'no_such_module'"),
        ("menu_broken:OTHER", "study 'spam' of menu 1.0 defines no OTHER: did you mean menu_broken:STUDY?"),
        ("menu_broken:base", "must be a torchstone.bench.Study, but is a function"),
        ("menu_raising", "study 'spam' of menu 1.0, line 1: ZeroDivisionError"),
        ("menu_named", "calls itself 'ham'"),
        ("menu/odd :: value", "there is no module"),
        ("", "there is no module ''"),
    ],
)
def test_one_sentence_says_what_is_wrong_with_an_entry_point(
    value: str, sentence: str, write: Callable[..., Path], announce: Callable[..., None]
):
    write("menu_broken.py")
    write("menu_raising.py", "1 / 0\n")
    write("menu_named.py", STUDY.replace('"spam"', '"ham"'))
    announce(f"spam = {value}")
    with pytest.raises((StudyError, UnknownNameError)) as error:
        api.find_study("spam")
    assert sentence in str(error.value)


def test_a_name_announced_twice_is_nobodys(announce: Callable[..., None]):
    announce("spam = a:STUDY")
    announce("spam = b:STUDY", package="kitchen")
    with pytest.raises(StudyError, match=r"announced by menu 1\.0 and by kitchen 1\.0"):
        api.find_study("spam")


def test_a_paper_cannot_be_taken_over(announce: Callable[..., None]):
    announce("sop = menu:STUDY\njtt = menu:STUDY")
    assert api.find_study("sop").experiments[0].name == "mnist"
    with pytest.raises(UnknownNameError, match="no study of 'jtt' yet"):
        api.find_study("jtt")


def test_a_package_that_cannot_be_read_hides_no_other(announce: Callable[..., None]):
    announce("spam = no_such_module:STUDY")
    announce("nonsense", package="broken")
    broken, sound = _plugins.announced(_plugins.STUDIES)
    assert (broken.package, broken.name) == ("broken 1.0", "")
    assert "entry_points.txt cannot be read" in broken.problem
    assert (sound.name, sound.package) == ("spam", "menu 1.0")  # and nothing of it is imported
    with pytest.raises(UnknownNameError, match=r"there are: .*spam"):
        api.find_study("")


def test_options_reach_the_bench(monkeypatch: pytest.MonkeyPatch):
    seen: list[Options] = []

    def note(study: object, store: object, options: Options) -> None:
        seen.append(options)

    monkeypatch.setattr(api, "run_study", note)
    api.run("sop", store=":memory:", jobs=3, fail_fast=True, replicates=7)
    assert (seen[0].jobs, seen[0].fail_fast, seen[0].replicates) == (3, True, 7)
