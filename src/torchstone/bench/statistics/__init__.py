"""The statistics of the bench in one place, for anybody's numbers; no study needed.

>>> from torchstone.bench.statistics import compare
>>> result = compare(a=[0.91, 0.92, 0.90, 0.93, 0.94, 0.92], b=[0.90, 0.90, 0.89, 0.91, 0.92, 0.91])
>>> print(result.verdict, result.p, result.ci)
reproduced 1.0 (1.0, 1.0)

- scores of two arms, a verdict: :func:`compare`
- replicates still coming in, when to stop: :class:`SequentialComparison`, :func:`decide`
- scores of k methods, an order and what it is worth: :func:`rank_methods`, :func:`ranking_instability`; two orders,
  how far they agree: :func:`kendall_tau`
- many p-values or e-values, adjusted: :func:`adjust`
- before running, replicates, error and power: :func:`sample_size`, :func:`operating_characteristics`
- rules of thumb, how often each is wrong: :func:`error_rates`, :func:`claims_better`
- one varying source at a time, where the variance comes from: :func:`variance_by_source`
- scores over ordered levels, a trend: :func:`trend_test`
- scores over many data sets, robust aggregates: :func:`aggregate_scores`, :func:`performance_profile`
- a CSV file or a pandas table, all of it: :func:`torchstone.bench.statistics.scores.judge_scores`
"""

from __future__ import annotations

from torchstone.bench.statistics.aggregate import Aggregate, aggregate_scores, performance_profile
from torchstone.bench.statistics.comparison import Comparison, Effect, compare, probability_of_outperforming
from torchstone.bench.statistics.decision_rules import ErrorRates, claims_better, error_rates, normal_scores
from torchstone.bench.statistics.design import critical_wins, operating_characteristics, sample_size, sign_test
from torchstone.bench.statistics.evalues import confidence_sequence, e_value, log_e_value
from torchstone.bench.statistics.intervals import mean_interval, percentile_interval, rank_interval
from torchstone.bench.statistics.multiplicity import adjust
from torchstone.bench.statistics.ranking import Ranking, critical_difference, friedman, rank_methods
from torchstone.bench.statistics.sequential import Decision, SequentialComparison, decide
from torchstone.bench.statistics.significance import rank_sum_test, sign_flip_test, signed_rank_test
from torchstone.bench.statistics.stability import RankingInstability, kendall_tau, ranking_instability
from torchstone.bench.statistics.trend import TrendTest, trend_test
from torchstone.bench.statistics.variance import SourceVariance, variance_by_source

__all__ = [
    "Aggregate",
    "Comparison",
    "Decision",
    "Effect",
    "ErrorRates",
    "Ranking",
    "RankingInstability",
    "SequentialComparison",
    "SourceVariance",
    "TrendTest",
    "adjust",
    "aggregate_scores",
    "claims_better",
    "compare",
    "confidence_sequence",
    "critical_difference",
    "critical_wins",
    "decide",
    "e_value",
    "error_rates",
    "friedman",
    "kendall_tau",
    "log_e_value",
    "mean_interval",
    "normal_scores",
    "operating_characteristics",
    "percentile_interval",
    "performance_profile",
    "probability_of_outperforming",
    "rank_interval",
    "rank_methods",
    "rank_sum_test",
    "ranking_instability",
    "sample_size",
    "sign_flip_test",
    "sign_test",
    "signed_rank_test",
    "trend_test",
    "variance_by_source",
]
