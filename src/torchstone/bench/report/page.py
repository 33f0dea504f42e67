"""The report as one HTML page: every claim of every study in front, then a part for each study.

The page needs no network and, to be read, no script: a few lines of it sort and filter tables. Its content security
policy admits that script and style sheet alone, by their hashes. Every text is escaped.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import count
from typing import TYPE_CHECKING, Any

from torchstone.bench import evidence
from torchstone.bench.report import figures, tables
from torchstone.bench.report.curves import Band, learning_curves
from torchstone.bench.report.summary import (
    claim_lines,
    command_of,
    in_plain_words,
    state,
    tuning_lines,
    unfinished,
)
from torchstone.bench.report.wording import (
    DASH,
    LIMITS,
    SCOPE,
    SIGNS,
    SMOKE,
    duration,
    hyper,
    interval,
    number,
    shortened,
    spread,
    visible,
)
from torchstone.bench.result import Result
from torchstone.bench.statistics.verdict import Verdict
from torchstone.catalogue import papers
from torchstone.errors import require

if TYPE_CHECKING:
    from torchstone.bench.store import Store

__all__ = ["html"]

CURVES = 4  # names of curves that are drawn for an experiment; a study may log dozens
ARMS = 12  # that a figure tells apart by labels; where there are more, those that claims speak about
NAME = 60  # letters of a name in a table; the whole name stands in the list of arms
SENTENCE = 600  # letters of a claim or a reason
_WEIGHED = (Verdict.REPRODUCED, Verdict.NOT_MEANINGFUL, Verdict.REFUTED)  # rest on an e-value, which can be adjusted


def html(results: Sequence[Result], *, store: Store | None = None, command: str = "") -> str:
    """The page.

    Args:
        results: what to report.
        store: the open store of the results, from which the learning curves are read.
        command: the command that runs a single study again; by default put together from the result.

    Raises:
        MissingDependencyError: without jinja2.
    """
    studies = [
        _study(result, store, command, anchor) for result, anchor in zip(results, _anchors(results), strict=True)
    ]
    adjusted = _adjusted(results)
    for study, verdict in zip(studies, adjusted, strict=True):
        study["adjusted"] = verdict
    style, script = _asset("page.css"), _asset("page.js")
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'"
    return (
        _templates()
        .get_template("page.html")
        .render(
            studies=studies,
            many=len(studies) > 1,
            verdicts=list(dict.fromkeys(claim.verdict for study in studies for claim in study["claims"])),
            e_values=sorted({result.e_threshold for result in results}),
            made=time.strftime("%Y-%m-%d %H:%M"),
            policy=policy,
            style=style,
            script=script,
        )
    )


def _asset(name: str) -> str:
    return files("torchstone.bench.report").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@functools.cache
def _templates() -> Any:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError:
        raise require("jinja2", "bench") from None
    pages = Environment(
        loader=PackageLoader("torchstone.bench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    pages.globals |= {"signs": SIGNS, "dash": DASH, "plain": in_plain_words}
    pages.globals |= {"p_axis": figures.p_axis, "spread": spread}
    pages.filters |= {
        "name": lambda text: shortened(text, NAME),
        "sentence": lambda text: shortened(text, SENTENCE),
        "number": number,
        "interval": interval,
        "duration": duration,
        "share": lambda value: DASH if math.isnan(value) else f"{value:.2f}",
        "sortable": lambda value: "" if math.isnan(value) else f"{value:.6g}",
    }
    return pages


def _anchors(results: Sequence[Result]) -> list[str]:
    """A part of the address for every study, made of plain letters, each once."""
    found: list[str] = []
    for result in results:
        plain = re.sub(r"[^a-z0-9]+", "-", result.study.name.lower()).strip("-")[:NAME] or "study"
        candidates = (plain if n == 1 else f"{plain}-{n}" for n in count(1))
        found.append(next(one for one in candidates if one not in found))
    return [f"study-{anchor}" for anchor in found]


def _adjusted(results: Sequence[Result]) -> list[str]:
    """Whether the verdict of each study's primary claim survives the adjustment over all of them."""
    family = {str(i): {"verdicts": one.verdict_records()} for i, one in enumerate(results) if one.scale != "smoke"}
    found = evidence.adjusted_verdicts(family) if len(family) > 1 else {}
    said = []
    for i, result in enumerate(results):
        weighed = str(i) in found and result.verdict in _WEIGHED and not result.primary.claim.always
        if weighed:
            said.append("survives" if found[str(i)] == result.verdict else "does not survive")
        else:
            said.append(DASH)
    return said


def _study(result: Result, store: Store | None, command: str, anchor: str) -> dict[str, Any]:
    claims = claim_lines(result)
    done = [run for run in result.runs if run.status == "done"]
    curves = learning_curves(result, store) if store is not None else {}
    colour = figures.colours(result.study)
    experiments = [
        _experiment(result, i, curves.get(experiment.name, {}), colour, f"{anchor}--{i}")
        for i, experiment in enumerate(result.study.experiments, 1)
    ]
    troubles = tables.troubles(result)
    return {
        "anchor": anchor,
        "name": result.study.name,
        "about": result.study.about,
        "scale": result.scale,
        "paper": next((row for row in papers() if row.slug == result.study.name and row.url), None),
        "runs": len(done),
        "seconds": sum(run.wall_s + run.shared_s for run in done) or result.seconds,
        "headline": claims[0],
        "claims": claims,
        "colours": colour,
        "smoke": SMOKE if result.scale == "smoke" else "",
        "unfinished": unfinished(result),
        "experiments": experiments,
        "excluded": [j for j in result.judgements if j.excluded or j.diverged],
        "troubles": [(trouble, tables.counts(trouble.replicates)) for trouble in troubles],
        "failures": () if any(one.kind == "failed" for one in troubles) else result.failures,  # told once
        "limits": [LIMITS[result.scale], SCOPE],
        "command": command or command_of(result),
        "seed": result.study.seed,
        "store": result.store,
        "environments": _environments(result, store),
        "fingerprints": _fingerprints(result),
    }


def _experiment(
    result: Result,
    position: int,
    curves: Mapping[tuple[str, str], Mapping[str, Band]],
    colour: Mapping[str, int],
    anchor: str,
) -> dict[str, Any]:
    stated = result.study.experiments[position - 1]
    name = stated.name
    rows = tables.score_rows(result, name)
    metrics = [metric for metric in result.metrics(name) if any(metric in row.means for row in rows)]
    costs = tables.cost_rows(result, name)
    return {
        "anchor": anchor,
        "name": name,
        "state": state(result, name),
        "arms": [(arm, colour[arm], stated.arms[arm]) for arm in stated.arms],
        "cases": stated.cases,
        "metrics": metrics,
        "rows": rows,
        "derived": tables.derived_values(result, name),
        "strips": list(_strips(result, name, colour)),
        "curves": list(_curves(result, name, curves, colour)),
        "costs": costs,
        "cost_names": list(dict.fromkeys(kind for by_kind in costs.values() for kind in by_kind)),
        "stacked": result.stacked.get(name, {}),
        "cost_plots": list(_cost_plots(result, name, rows, costs, colour)),
        "variance": [
            (arm, sources, figures.variance_plot(sources, title=f"Standard deviation of the score of {arm}, {name}"))
            for arm, sources in tables.sources_of_variance(result, name).items()
        ],
        "tuning": tuning_lines(result, name),
        "tuned_on": stated.tuning_case if len(stated.cases) > 1 else "",
        "draws": _draws(result, name),
        "data": stated.data,
    }


def _shown(result: Result, experiment: str, arms: Sequence[str]) -> list[str]:
    """The arms that a figure shows: all, or where those are too many the ones that claims speak about."""
    if len(arms) <= ARMS:
        return list(arms)
    stated = result.study.experiment(experiment)
    claims = sorted((*stated.claims, *stated.premises), key=lambda claim: not claim.primary)
    named = list(dict.fromkeys(arm for claim in claims for arm in claim.arms if arm in arms))
    chosen = {*named[:ARMS], *[arm for arm in arms if arm not in named][: max(0, ARMS - len(named))]}
    return [arm for arm in arms if arm in chosen]


def _strips(result: Result, experiment: str, colour: Mapping[str, int]) -> Iterator[tuple[str, str, str]]:
    """(metric, case, figure) for every metric that a claim speaks about."""
    stated, rows = result.study.experiment(experiment), result.rows.get(experiment, ())
    for metric in tables.claimed_metrics(result, experiment):
        for case in stated.cases:
            arms = [arm for arm in stated.arms if case in stated.cases_of(arm)]
            scores = {arm: tables.scores(result, experiment, metric, arm, case) for arm in arms}
            scores = {arm: values for arm, values in scores.items() if not all(map(math.isnan, values))}
            if scores:
                lost = {arm: sum(bool(row.diverged(arm, case)) for row in rows) for arm in scores}
                title = f"{metric} of every arm in {len(rows)} paired replicates, {experiment}, {case}"
                yield metric, case, figures.strip_plot(scores, title=title, colour=colour, lost=lost)


def _curves(
    result: Result, experiment: str, curves: Mapping[tuple[str, str], Mapping[str, Band]], colour: Mapping[str, int]
) -> Iterator[tuple[str, str, str, int]]:
    """(curve, case, figure, replicates) for the first few curves that the arms logged."""
    cases = result.study.experiment(experiment).cases
    for name in list(dict.fromkeys(name for name, _ in curves))[:CURVES]:
        for case in cases:
            bands = curves.get((name, case), {})
            arms = _shown(result, experiment, [arm for arm in colour if arm in bands])
            if arms:
                title = f"{name} while training, {experiment}, {case}"
                shown = {arm: bands[arm] for arm in arms}
                figure = figures.curve_plot(shown, title=title, colour=colour)
                yield name, case, figure, max(band.replicates for band in shown.values())


def _cost_plots(
    result: Result,
    experiment: str,
    rows: Sequence[tables.ScoreRow],
    costs: Mapping[tuple[str, str], Mapping[str, float]],
    colour: Mapping[str, int],
) -> Iterator[tuple[str, str, str, str]]:
    """(cost, metric, case, figure) on the first case: for seconds, and for what is counted if the arms differ in it."""
    stated = result.study.experiment(experiment)
    metric = next(iter(tables.claimed_metrics(result, experiment)), "")
    primary = next((claim for claim in stated.claims if claim.primary), stated.claims[0])
    case = next(iter(primary.cases or stated.cases))
    found = {
        row.arm: row.means[metric]
        for row in rows
        if row.case == case and metric in row.means and row.means[metric].n and (case, row.arm) in costs
    }
    arms = _shown(result, experiment, list(found))
    kinds = dict.fromkeys(kind for arm in arms for kind in costs[case, arm] if not kind.startswith("peak memory"))
    for kind in kinds:
        spots = {
            arm: figures.Spot(costs[case, arm][kind], found[arm].mean, found[arm].low, found[arm].high)
            for arm in arms
            if math.isfinite(costs[case, arm].get(kind, math.nan))
        }
        if len({spot.cost for spot in spots.values()}) > 1:
            title = f"{metric} against {kind} per run, {experiment}, {case}"
            yield kind, metric, case, figures.cost_plot(spots, title=title, colour=colour)


def _draws(result: Result, experiment: str) -> list[tuple[str, str, str, float]]:
    """(arm, number, hyper-parameters, objective) of every tuning draw; NaN where it failed or diverged."""
    return [
        (run.arm, str(run.attempt + 1), hyper(run.hyper), math.nan if run.objective is None else run.objective)
        for run in sorted(result.runs, key=lambda run: (run.arm, run.attempt))
        if run.experiment == experiment and run.kind == "hpo" and run.status in ("done", "failed")
    ]


def _environments(result: Result, store: Store | None) -> list[tuple[int, list[tuple[str, str]]]]:
    """(runs, facts) for every environment in which runs were made; without a store, that of the result alone."""
    ids = [run.env_id for run in result.runs if run.env_id]
    known = store.environments() if store is not None else {}
    found = [(ids.count(one), list(_flat(known[one]))) for one in dict.fromkeys(ids) if one in known]
    return found or ([(0, list(_flat(result.environment)))] if result.environment else [])


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """A nested mapping as (dotted name, text)."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        elif value not in (None, "", [], ()):
            yield f"{above}{name}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _fingerprints(result: Result) -> list[tuple[str, str, str, str]]:
    """(experiment, arm, data, code) of the runs that count, each once."""
    found = dict.fromkeys(
        (run.experiment, run.arm, run.data or DASH, run.fingerprint or DASH)
        for run in result.runs
        if run.kind == "trial"
    )
    return list(found)
