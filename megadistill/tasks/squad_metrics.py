"""SQuAD's own rules: what counts as the same answer, and exact match and F1 over questions.

Rajpurkar et al. 2016 (section 6.1) and 2018 (SQuAD 2.0, where a question may have no answer); the rules are those of
the scripts `evaluate-v1.1.py` and `evaluate-v2.0.py`, written anew.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


def normalized(text: str) -> str:
    """Lower case without ASCII punctuation, articles and superfluous space."""
    plain = "".join(letter for letter in text.lower() if letter not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def exact(predicted: str, gold: str) -> float:
    """1 if both are the same once normalised."""
    return float(normalized(predicted) == normalized(gold))


def f1(predicted: str, gold: str) -> float:
    """Harmonic mean of precision and recall over normalised words. Answers that have none agree with each other alone,
    as in SQuAD 2.0's script."""
    ours, theirs = normalized(predicted).split(), normalized(gold).split()
    if not ours or not theirs:
        return float(ours == theirs)
    same = sum((Counter(ours) & Counter(theirs)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


def _f1_of_1(predicted: str, gold: str) -> float:
    """SQuAD 1.1's script finds no common word in two answers that have none, such as two articles."""
    return f1(predicted, gold) if normalized(predicted) and normalized(gold) else 0.0


def score_1(predictions: Mapping[str, str], golds: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """SQuAD 1.1: each question's best over its golds, mean over all questions, in per cent.

    Args:
        predictions: by question; one that is missing scores 0.
        golds: by question, at least one each.
    """

    def mean(score: Callable[[str, str], float]) -> float:
        total = sum(max(score(predictions[q], gold) for gold in golds[q]) for q in golds if q in predictions)
        return 100.0 * total / len(golds)

    return {"exact_match": mean(exact), "f1": mean(_f1_of_1)}


def score_2(predictions: Mapping[str, str], golds: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """SQuAD 2.0, in per cent; "" is the answer that there is none.

    Args:
        predictions: by question; one that is missing scores 0.
        golds: by question; none where it has no answer. Those that normalise to nothing are left out, as there.

    Returns:
        exact_match and f1 over all questions, and over those with and those without an answer.
    """
    kept = {q: [gold for gold in answers if normalized(gold)] or [""] for q, answers in golds.items()}
    groups = {
        "": list(kept),
        "has_answer_": [q for q in kept if golds[q]],
        "no_answer_": [q for q in kept if not golds[q]],
    }
    result: dict[str, float] = {}
    for name, score in (("exact_match", exact), ("f1", f1)):
        each = {q: max(score(predictions[q], gold) for gold in kept[q]) for q in kept if q in predictions}
        for group, questions in groups.items():
            if questions:
                result[group + name] = 100.0 * sum(each.get(q, 0.0) for q in questions) / len(questions)
    return result
