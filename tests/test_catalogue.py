"""The catalogue is complete, says of every paper what it has to, and tells where it is wrong."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

import torchstone
from torchstone.catalogue import Paper, _parse, citation, markdown_table, paper, papers, search
from torchstone.errors import StudyError, UnknownNameError

FIELDS = {
    "noise": "sop tram npc rog",
    "shift": "jtt bonsai bayesian-dg importance-weighting model-soups",
    "adversarial": "acg reverse-attack bagging-certificate linac",
    "contrastive": "negative-samples surrogate-gap metaug bcl idaa icl-msr contrastive-label-noise postman-pat",
    "graph": "graphnorm gnn-depth lagnn sep geometric-scattering ign-convergence time-then-graph dstagnn cycle-gnn "
    "lagraph oepg contrastive-sat",
    "optim": "adai efld learned-optimizer dragonn",
    "dynamics": "whitening momentum linear-interpolation deep-linear step-size-bias neural-collapse-mse extended-ufm",
    "layers": "ortho-conv sithcon ladder-capsule augmented-dropout deq-init",
    "continuous": "neural-rde lyanet",
    "similarity": "cka soft-nearest-neighbor",
    "compress": "structured-lottery lit nas-interference",
    "federated": "fedrescue",
    "inverse": "mraugment sgilo",
    "language": "tlm routed-scaling",
    "bench": "unreproducible",
}
TRACKS = {
    "noisy-labels": "sop tram npc rog",
    "graph-classification": "graphnorm sep geometric-scattering lagraph oepg",
    "node-classification": "gnn-depth lagnn",
    "worst-group": "jtt",
    "contrastive": "bcl idaa icl-msr metaug",
    "robustness": "acg linac reverse-attack",
}
VOLUMES = {2019: 97, 2021: 139, 2022: 162}  # of the Proceedings of Machine Learning Research
SOURCE = files("torchstone").joinpath("catalogue.toml").read_text(encoding="utf-8")

every_paper = pytest.mark.parametrize("row", papers(), ids=lambda row: row.slug)


def slugs(rows: tuple[Paper, ...]) -> set[str]:
    return {row.slug for row in rows}


def test_all_62_papers_each_in_its_field() -> None:
    assert len(papers()) == 62
    assert {field: slugs(search(field=field)) for field in FIELDS} == {k: set(v.split()) for k, v in FIELDS.items()}


def test_papers_of_each_track() -> None:
    assert {row.track for row in papers()} == {*TRACKS, ""}
    assert {track: slugs(search(track=track)) for track in TRACKS} == {k: set(v.split()) for k, v in TRACKS.items()}


def test_file_is_sorted_by_slug_and_every_table_has_the_same_order_of_keys() -> None:
    tables = tomllib.loads(SOURCE)["paper"]
    assert [table["slug"] for table in tables] == sorted(table["slug"] for table in tables)
    assert {tuple(table) for table in tables} == {tuple(tables[0])}


def test_head_of_the_file_explains_every_key_and_every_need_that_is_used() -> None:
    head = SOURCE[: SOURCE.index("\n[[paper]]\n")]
    assert re.findall(r"^# ([a-z]+)  +\S", head, re.MULTILINE) == list(tomllib.loads(SOURCE)["paper"][0])
    explained = re.findall(r"^#  {10,}([a-z-]+)  +\S", head, re.MULTILINE)
    assert explained == sorted({need for row in papers() for need in row.needs})


@every_paper
def test_row(row: Paper) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", row.slug)
    assert row.title.strip() == row.title != ""
    assert row.authors
    assert all(re.fullmatch(r"\S+( \S+)+", author) for author in row.authors)
    assert "et al." not in row.authors
    assert row.venue == "ICML"
    family = row.authors[0].split()[-1].lower()
    volume = VOLUMES[row.year]
    assert re.fullmatch(rf"https://proceedings\.mlr\.press/v{volume}/{family}{row.year % 100}[a-z]+\.html", row.url)
    assert len(row.claim) <= 200
    assert re.fullmatch(r"[A-Z][^.]*\.", row.claim)  # one sentence
    assert list(row.needs) == sorted(set(row.needs))


@every_paper
def test_names_of_objects_lie_in_the_field_and_are_given_once(row: Paper) -> None:
    names = row.objects + row.rivals
    assert row.objects
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(rf"torchstone\.{row.field}(\.[a-z_]+)?\.[A-Za-z]\w*", name) for name in names)


@pytest.mark.parametrize("name", [name for row in search(status="ready") for name in row.objects + row.rivals])
def test_objects_of_ready_papers_can_be_imported(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert attribute in importlib.import_module(module).__all__


def test_what_is_ready_names_its_rivals() -> None:
    assert slugs(search(status="ready")) >= {"npc", "rog", "sop", "tram", "unreproducible"}
    assert "torchstone.noise.EarlyLearningRegularization" in paper("sop").rivals


def test_extras_exist() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {extra for row in papers() for extra in row.extra.split(",")} - {""}
    assert extras <= set(project["optional-dependencies"])


def test_paper_with_a_typo_suggests_the_right_slug() -> None:
    with pytest.raises(UnknownNameError, match="unknown paper 'graph-norm': did you mean 'graphnorm'"):
        paper("graph-norm")


def test_byline_of_one_two_and_more_authors() -> None:
    assert paper("sop").byline == "Liu et al., ICML 2022"
    assert paper("momentum").byline == "Jelassi and Li, ICML 2022"
    assert replace(paper("sop"), authors=("Ada King",)).byline == "King, ICML 2022"


def test_search_combines_filters() -> None:
    assert search() == papers()
    assert slugs(search(field="graph", needs="time-series")) == {"dstagnn", "time-then-graph"}
    assert search(field="noise", needs="groups") == ()


def test_search_text_needs_every_word_in_any_case_and_order() -> None:
    assert slugs(search(text="NORMALISATION graphnorm")) == {"graphnorm"}
    assert slugs(search(text="kornblith")) == {"cka", "model-soups"}
    assert slugs(search(text="SparseOverparamLoss")) == {"sop"}
    assert search(text="graphnorm absent") == ()


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"field": "noisy"}, "unknown field 'noisy': did you mean 'noise'"),
        ({"track": "noisy-label"}, "unknown track 'noisy-label': did you mean 'noisy-labels'"),
        ({"needs": "annotator"}, "unknown need 'annotator': did you mean 'annotators'"),
        ({"status": "readyy"}, "unknown status 'readyy': did you mean 'ready'"),
        ({"track": ""}, "unknown track ''"),
    ],
)
def test_search_with_an_unknown_name(filters: dict[str, str], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        search(**filters)


def parse_bibtex(entry: str) -> tuple[str, dict[str, str]]:
    """Read one entry, counting braces as BibTeX does."""
    head = re.match(r"@inproceedings\{([a-z0-9-]+),\n", entry)
    assert head
    values: dict[str, str] = {}
    position = head.end()
    while entry[position] != "}":
        name = re.compile(r"  ([a-z]+) += \{").match(entry, position)
        assert name
        depth, end = 1, name.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(entry[end], 0)
            end += 1
        values[name[1]] = entry[name.end() : end - 1]
        assert entry[end : end + 2] == ",\n"
        position = end + 2
    assert entry[position:] == "}"
    return head[1], values


@every_paper
def test_citation_is_bibtex(row: Paper) -> None:
    key, values = parse_bibtex(citation(row.slug))
    assert list(values) == ["title", "author", "booktitle", "year", "url"]
    assert values["author"].split(" and ") == list(row.authors)
    assert values["booktitle"] == "International Conference on Machine Learning"
    assert values["url"] == row.url
    assert key.endswith(f"{row.year}{row.slug}")
    assert not re.search(r"(?<!\\)[&%#_]", values["title"].replace("$\\ell_p$", ""))


def test_citation_escapes_what_latex_would_stumble_over() -> None:
    assert r"Collapsed \& Whitened" in citation("postman-pat")
    assert r"Engineering $\ell_p$ attacks" in citation("reverse-attack")


def test_citation_of_unknown_paper() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'sop'"):
        citation("sopp")


def test_markdown_table_without_and_with_evidence() -> None:
    lines = markdown_table().splitlines()
    assert len(lines) == 64
    assert lines[:2] == ["| slug | paper | field | status |", "| --- | --- | --- | --- |"]
    title = "Robust Training under Label Noise by Over-parameterization"
    reference = f"[{title}](https://proceedings.mlr.press/v162/liu22w.html), Liu et al., ICML 2022"
    assert f"| `sop` | {reference} | `noise` | ready |" in lines

    lines = markdown_table({"sop": "P(w) | reproduced"}).splitlines()
    assert lines[0].endswith("| status | verdict |")
    assert f"| `sop` | {reference} | `noise` | ready | P(w) \\| reproduced |" in lines
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 6 for line in lines)


def test_markdown_table_with_evidence_for_an_unknown_paper() -> None:
    with pytest.raises(UnknownNameError, match="unknown paper 'spo'"):
        markdown_table({"spo": "reproduced"})


ROW = SOURCE[SOURCE.index('[[paper]]\nslug = "sop"') : SOURCE.index('[[paper]]\nslug = "step-size-bias"')]


def test_one_row_alone_is_read() -> None:
    assert _parse(ROW) == (paper("sop"),)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title =", "titles =", r"paper 1 \(sop\): unknown key 'titles': did you mean 'title'"),
        ('track = "noisy-labels"\n', "", r"paper 1 \(sop\): the key 'track' is missing"),
        ('slug = "sop"\n', "", r"paper 1 \(without slug\): the key 'slug' is missing"),
        ("year = 2022", 'year = "2022"', r"paper 1 \(sop\): 'year' must be of type int, but is '2022'"),
        ("year = 2022", "year = true", "'year' must be of type int, but is True"),
        ("needs = []", 'needs = "gpu"', r"'needs' must be of type tuple\[str, \.\.\.\], but is 'gpu'"),
        ("needs = []", "needs = [1]", r"'needs' must be of type tuple\[str, \.\.\.\], but is \[1\]"),
        ('status = "ready"', 'status = "readyy"', r"paper 1 \(sop\): unknown status 'readyy': did you mean 'ready'"),
        ("[[paper]]", "[[papers]]", r"must hold \[\[paper\]\] tables and nothing else, but holds \['papers'\]"),
    ],
)
def test_a_fault_in_the_file_names_row_and_key(old: str, new: str, message: str) -> None:
    assert old in ROW
    with pytest.raises(StudyError, match=message):
        _parse(ROW.replace(old, new))


def test_duplicate_slug() -> None:
    with pytest.raises(StudyError, match="paper 2: the slug 'sop' is there twice"):
        _parse(ROW + ROW)


def test_catalogue_imports_neither_torch_nor_numpy() -> None:
    code = "import sys; from torchstone.catalogue import papers; papers(); print({'torch', 'numpy'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(Path(torchstone.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
