"""The metrics that GLUE reports, and the macro score over its tasks (Wang et al. 2019, section 3 and table 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megadistill.core.errors import UserError

Values = NDArray[Any]


def accuracy(truth: Values, predicted: Values) -> float:
    """Share of equal entries."""
    return float(np.mean(truth == predicted))


def f1(truth: Values, predicted: Values) -> float:
    """Of class 1; 0 where it is neither there nor predicted."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, predicted, pos_label=1, zero_division=0))


def macro_f1(truth: Values, predicted: Values) -> float:
    """The mean over classes, those that are there or predicted, of each one's F1."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, predicted, average="macro", zero_division=0))


def matthews(truth: Values, predicted: Values) -> float:
    """Matthews' correlation; 0 where either side has one class only."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(truth, predicted))


def pearson(truth: Values, predicted: Values) -> float:
    """Linear correlation; 0 where either side is constant: such a model has learnt nothing."""
    return _correlation("pearsonr", truth, predicted)


def spearman(truth: Values, predicted: Values) -> float:
    """Correlation of ranks, ties sharing their mean rank; 0 where either side is constant."""
    return _correlation("spearmanr", truth, predicted)


def _correlation(name: str, truth: Values, predicted: Values) -> float:
    import scipy.stats

    if not np.isfinite(predicted).all():
        raise UserError("the model rates some examples with numbers that are not finite", "", "it has diverged")
    if len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(predicted) == 0:
        return 0.0
    return float(getattr(scipy.stats, name)(truth, predicted).statistic)


METRICS: dict[str, Callable[[Values, Values], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def macro(scores: Mapping[str, float], without: Sequence[str] = ()) -> float | None:
    """The unweighted mean over tasks, of which each with two metrics or two dev parts counts as their mean.

    GLUE's own leaves nothing out; most papers report it without WNLI, whose dev set contradicts its training set.

    Returns:
        None where there are no scores.
    """
    kept = [score for task, score in scores.items() if task not in without]
    return float(np.mean(kept)) if kept else None


def spread(values: Sequence[float]) -> dict[str, float]:
    """What several seeds say together: median, mean, smallest, largest, and the sample's standard deviation."""
    array = np.array(values, dtype=np.float64)
    return {
        "median": float(np.median(array)),
        "mean": float(array.mean()),
        "min": float(array.min()),
        "max": float(array.max()),
        "std": float(array.std(ddof=1)) if len(array) > 1 else 0.0,
        "num_seeds": float(len(array)),
    }
