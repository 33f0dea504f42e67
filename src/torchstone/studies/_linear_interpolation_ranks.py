"""Does a number that is known without the test data order the ways to train as test accuracy does?

All ways to train one architecture in one replicate are ordered by a predictor and by test accuracy, and compared by
Spearman's rank correlation. Architectures are never pooled but in a value named so. A predictor that is the same for
all ways to train orders nothing: its correlation in that architecture is undefined, the mean is over the others, and 0
where there are none. A loss that never falls to half comes after all that do. Runs that diverged have no place in the
order.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from torchstone.bench.outcome import Row

__all__ = ["RIVALS", "SHAPES", "ranks"]

SHAPES = ("barrier", "gap", "alpha_half", "area")
RIVALS = ("early_loss", "final_loss", "distance", "trace")
CHANGED_DATA = ("few", "noisy")


def ranks(row: Row) -> dict[str, float]:
    """``derive`` of the experiments on ways to train.

    For each predictor: ``rho_NAME``, the mean over architectures of the rank correlation with test accuracy, and
    ``size_NAME``, its absolute value; ``pooled_NAME`` over all runs. ``best_shape`` and ``best_rival`` are the largest
    sizes among the shapes of a path, and among what needs no path; ``best_shape_same_data`` without the conditions that
    change the training data. ``r2_shape``: share of the variance within architectures that a regression on all shapes
    explains in conditions that it has not seen. ``spread``: the smallest range of test accuracy of an architecture.
    """
    tables = {arm: _table(row, arm) for arm in dict.fromkeys(arm for arm, _ in row.outcomes)}
    same = {arm: _table(row, arm, leave_out=CHANGED_DATA) for arm in tables}
    found: dict[str, float] = {}
    for name in (*SHAPES, *RIVALS):
        by_arm = {arm: spearman(table[name], table["accuracy"]) for arm, table in tables.items()}
        found |= {f"rho_{name}_{arm}": rho for arm, rho in by_arm.items()} if name in SHAPES else {}
        found[f"rho_{name}"] = _mean(by_arm.values())
        found[f"size_{name}"] = abs(found[f"rho_{name}"])
        pooled = [np.concatenate([table[column] for table in tables.values()]) for column in (name, "accuracy")]
        found[f"pooled_{name}"] = _mean([spearman(*pooled)])
    sizes = [abs(_mean(spearman(table[name], table["accuracy"]) for table in same.values())) for name in SHAPES]
    return found | {
        "best_shape": max(found[f"size_{name}"] for name in SHAPES),
        "best_shape_same_data": max(sizes),
        "best_rival": max(found[f"size_{name}"] for name in RIVALS),
        "r2_shape": unseen_r2(list(tables.values())),
        "spread": min(float(np.ptp(t["accuracy"])) if len(t["accuracy"]) else 0.0 for t in tables.values()),
    }


def spearman(predictor: np.ndarray, score: np.ndarray) -> float:
    """Rank correlation, ties at their mean rank; NaN if either is constant, or there are fewer than four pairs."""
    from scipy.stats import rankdata

    there = ~np.isnan(predictor)
    if there.sum() < 4:
        return float("nan")
    a, b = (rankdata(values[there]) for values in (predictor, score))
    if not (a.std() and b.std()):
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def unseen_r2(tables: list[dict[str, np.ndarray]]) -> float:
    """R^2 of a linear regression of test accuracy on the shapes, one condition left out in turn.

    Shapes are ranks within an architecture; each architecture has a mean of its own, which is also what it is measured
    against. NaN if no accuracy varies.
    """
    from scipy.stats import rankdata

    shapes, scores, arms, conditions = [], [], [], []
    for number, table in enumerate(tables):
        size = len(table["accuracy"])
        columns = [rankdata(np.where(np.isnan(table[name]), np.inf, table[name])) / (size + 1) for name in SHAPES]
        shapes.append(np.stack(columns, 1))
        scores.append(table["accuracy"])
        arms.append(np.full(size, number))
        conditions.append(table["condition"])
    x, y, arm, condition = (np.concatenate(parts) for parts in (shapes, scores, arms, conditions))
    own_mean = (arm[:, None] == np.arange(len(tables))).astype(float)
    left, baseline = np.zeros_like(y), np.zeros_like(y)
    for number in np.unique(condition):
        out = condition == number
        for columns, errors in ((np.hstack([own_mean, x]), left), (own_mean, baseline)):
            weights = np.linalg.lstsq(columns[~out], y[~out], rcond=None)[0]
            errors[out] = y[out] - columns[out] @ weights
    total = float((baseline**2).sum())
    return 1 - float((left**2).sum()) / total if total else float("nan")


def _table(row: Row, arm: str, leave_out: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Predictors and accuracy of one architecture, by condition."""
    cases = [case for case in row.cases_of(arm) if not row.diverged(arm, case) and case not in leave_out]
    names = (*SHAPES, *RIVALS, "accuracy")
    table = {name: np.array([float(row.value(name, arm, case)) for case in cases]) for name in names}
    table["alpha_half"] = np.where(np.isnan(table["alpha_half"]), np.inf, table["alpha_half"])
    return table | {"condition": np.array([row.cases_of(arm).index(case) for case in cases])}


def _mean(correlations: Iterable[float]) -> float:
    known = [rho for rho in correlations if not np.isnan(rho)]
    return float(np.mean(known)) if known else 0.0
