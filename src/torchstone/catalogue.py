"""The catalogue of papers: what ``catalogue.toml`` beside this file says, as plain data.

The command line, the documentation, the README table and the tests all ask here. Nothing heavy is imported, so that
``torchstone list`` answers at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.resources import files
from typing import Any

from torchstone.errors import StudyError, did_you_mean

__all__ = ["Paper", "citation", "markdown_table", "paper", "papers", "search"]

_STATUSES = ("planned", "ready")
_VENUES = {"ICML": "International Conference on Machine Learning"}
_LATEX = {"&": r"\&", "%": r"\%", "\N{SCRIPT SMALL L}p": r"$\ell_p$"}


@dataclass(frozen=True, slots=True)
class Paper:
    """One row of the catalogue; the head of ``catalogue.toml`` says what each field means."""

    slug: str
    title: str
    authors: tuple[str, ...]
    year: int
    venue: str
    url: str
    field: str
    track: str
    needs: tuple[str, ...]
    extra: str
    claim: str
    objects: tuple[str, ...]
    rivals: tuple[str, ...]
    status: str

    @property
    def byline(self) -> str:
        """The short reference in running text, e.g. ``Liu et al., ICML 2022``."""
        families = [author.split()[-1] for author in self.authors]
        names = " and ".join(families) if len(families) <= 2 else f"{families[0]} et al."
        return f"{names}, {self.venue} {self.year}"


@lru_cache(maxsize=1)
def papers() -> tuple[Paper, ...]:
    """Return all papers, sorted by slug.

    Raises:
        StudyError: If the file has an unknown, missing or mistyped key, or a slug twice; names the row and the key.

    Example:
        >>> len(papers())
        62
    """
    return _parse(files("torchstone").joinpath("catalogue.toml").read_text(encoding="utf-8"))


def paper(slug: str) -> Paper:
    """Return the paper called ``slug``.

    Raises:
        UnknownNameError: If there is none, with the nearest slug as a hint.

    Example:
        >>> paper("sop").byline
        'Liu et al., ICML 2022'
    """
    for row in papers():
        if row.slug == slug:
            return row
    raise did_you_mean("paper", slug, (row.slug for row in papers()))


def search(
    *,
    field: str | None = None,
    track: str | None = None,
    needs: str | None = None,
    status: str | None = None,
    text: str | None = None,
) -> tuple[Paper, ...]:
    """Return the papers that pass every filter that is given, sorted by slug.

    Args:
        field: Name of the package, e.g. ``"graph"``.
        track: Name of the problem, e.g. ``"noisy-labels"``.
        needs: What the paper has to ask for, e.g. ``"annotators"``.
        status: ``"ready"`` or ``"planned"``.
        text: Words that must all occur in slug, title, authors, claim or names of objects, in any case and order.

    Raises:
        UnknownNameError: If no paper at all has that field, track, need or status, with the nearest one as a hint.

    Example:
        >>> [row.slug for row in search(track="noisy-labels", needs="annotators")]
        ['tram']
    """
    known = {
        "field": {row.field for row in papers()},
        "track": {row.track for row in papers()} - {""},
        "need": {need for row in papers() for need in row.needs},
        "status": set(_STATUSES),
    }
    for kind, value in zip(known, (field, track, needs, status), strict=True):
        if value is not None and value not in known[kind]:
            raise did_you_mean(kind, value, known[kind])
    words = (text or "").casefold().split()
    return tuple(
        row
        for row in papers()
        if field in (None, row.field)
        and track in (None, row.track)
        and (needs is None or needs in row.needs)
        and status in (None, row.status)
        and all(word in _haystack(row) for word in words)
    )


def citation(slug: str) -> str:
    """Return the BibTeX entry of a paper.

    Raises:
        UnknownNameError: If there is no such paper.

    Example:
        >>> print(citation("sop"))
        @inproceedings{liu2022sop,
          title     = {{Robust Training under Label Noise by Over-parameterization}},
          author    = {Sheng Liu and Zhihui Zhu and Qing Qu and Chong You},
          booktitle = {International Conference on Machine Learning},
          year      = {2022},
          url       = {https://proceedings.mlr.press/v162/liu22w.html},
        }
    """
    row = paper(slug)
    title = row.title
    for plain, latex in _LATEX.items():
        title = title.replace(plain, latex)
    entry = {
        "title": f"{{{title}}}",  # a second pair of braces keeps the capitals
        "author": " and ".join(row.authors),
        "booktitle": _VENUES.get(row.venue, row.venue),
        "year": str(row.year),
        "url": row.url,
    }
    key = f"{row.authors[0].split()[-1].lower()}{row.year}{row.slug}"
    lines = [f"  {name:<9} = {{{value}}}," for name, value in entry.items() if value]
    return "\n".join([f"@inproceedings{{{key},", *lines, "}"])


def markdown_table(evidence: Mapping[str, str] | None = None) -> str:
    """Return the table of all papers for the README, ending in a newline.

    Args:
        evidence: Verdict by slug; if given, the table has a column with it, empty where a paper has none.

    Raises:
        UnknownNameError: If ``evidence`` names a paper that is not in the catalogue.
    """
    for slug in evidence or ():
        paper(slug)
    table = [["slug", "paper", "field", "status", "verdict"], ["---"] * 5]
    for row in papers():
        reference = f"[{row.title}]({row.url}), {row.byline}"
        verdict = (evidence or {}).get(row.slug, "").replace("|", r"\|")
        table.append([f"`{row.slug}`", reference, f"`{row.field}`", row.status, verdict])
    columns = 4 if evidence is None else 5
    return "".join(f"| {' | '.join(cells[:columns])} |\n" for cells in table)


def _haystack(row: Paper) -> str:
    return " ".join((row.slug, row.title, *row.authors, row.claim, *row.objects, *row.rivals)).casefold()


def _parse(text: str) -> tuple[Paper, ...]:
    """Read a catalogue and check every row; the annotations of :class:`Paper` are the schema."""
    content = tomllib.loads(text)
    if set(content) != {"paper"}:
        raise StudyError(f"catalogue.toml must hold [[paper]] tables and nothing else, but holds {sorted(content)}")
    rows = [_row(number, table) for number, table in enumerate(content["paper"], start=1)]
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        if row.slug in seen:
            raise StudyError(f"catalogue.toml, paper {number}: the slug {row.slug!r} is there twice")
        seen.add(row.slug)
    return tuple(sorted(rows, key=lambda row: row.slug))


def _row(number: int, table: Mapping[str, Any]) -> Paper:
    where = f"catalogue.toml, paper {number} ({table.get('slug', 'without slug')})"
    schema = {field.name: str(field.type) for field in fields(Paper)}
    for key in table:
        if key not in schema:
            raise StudyError(f"{where}: {did_you_mean('key', key, schema)}")
    values: dict[str, Any] = {}
    for key, kind in schema.items():
        if key not in table:
            raise StudyError(f"{where}: the key {key!r} is missing")
        value = tuple(table[key]) if isinstance(table[key], list) else table[key]
        if not _fits(value, kind):
            raise StudyError(f"{where}: {key!r} must be of type {kind}, but is {table[key]!r}")
        values[key] = value
    if values["status"] not in _STATUSES:
        raise StudyError(f"{where}: {did_you_mean('status', values['status'], _STATUSES)}")
    return Paper(**values)


def _fits(value: Any, kind: str) -> bool:
    if kind == "tuple[str, ...]":
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    return type(value).__name__ == kind
