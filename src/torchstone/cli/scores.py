"""``judge``: verdicts on anybody's table of scores, without a study."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from torchstone.cli.options import Json, print_json

__all__ = ["judge"]


def judge(
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="Scores: one line per run, or a column per method.")],
    baseline: Annotated[
        str | None, typer.Option(metavar="METHOD", help="Compare all others with this one; by default all pairs.")
    ] = None,
    paired: Annotated[
        bool | None,
        typer.Option("--paired/--unpaired", help="Compare replicate by replicate; by default where they match."),
    ] = None,
    lower_is_better: Annotated[
        bool, typer.Option("--lower-is-better", help="The scores are errors or losses.")
    ] = False,
    gamma: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="Probability of outperforming from which a difference matters.")
    ] = 0.75,
    as_json: Json = False,
) -> None:
    """Judge a table of scores.

    Which method outperforms which, and does it matter? FILE.csv holds anybody's results. Its first line
    names the columns: either "method" and "score" (and "seed", "dataset" where there are such), with one run in each
    line; or one column for each method, with one replicate in each line.

    Example:
      torchstone judge scores.csv --baseline ours --lower-is-better
    """
    from torchstone.bench.statistics.scores import judge_scores, read_scores

    table = read_scores(file, higher_is_better=not lower_is_better)
    report = judge_scores(table, baseline=baseline, paired=paired, gamma=gamma)
    if not as_json:
        from torchstone.cli import show

        show.scores(report)
        return
    ranking = report.ranking
    print_json(
        {
            "methods": [asdict(summary) for summary in report.methods],
            "pairs": report.rows(),
            "baseline": report.baseline,
            "paired": report.paired,
            "unpaired_reason": report.unpaired_reason,
            "datasets": report.datasets,
            "higher_is_better": report.higher_is_better,
            "gamma": report.gamma,
            "alpha": report.alpha,
            "ranking": None
            if ranking is None
            else {
                "methods": ranking.methods,
                "mean_rank": ranking.mean_rank,
                "first": ranking.first,
                "cliques": ranking.cliques,
                "friedman_p": ranking.friedman_p,
            },
        }
    )
