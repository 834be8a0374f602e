"""Other projects' soft-target losses: the values of the fixture, and torch's own functions as their code calls them."""

import pytest
import torch
from torch.nn import functional as F

from megadistill.core.types import Dims, Signals
from megadistill.objectives.kd_compat import ORIGINALS, KDCompat
from megadistill.testing import states
from megadistill.testing.states import LABELS, MASK, STUDENT, TEACHER

S, T = STUDENT[0], TEACHER[0]


def value(original, temperature):
    """The objective as a run computes it on one batch: its sum over its count."""

    def signals(given):
        return Signals(lambda fn, rows: fn(given[rows], torch.eye(3, dtype=torch.float64), None))

    dims = Dims(1, 3, 3)
    batch = states.given(MASK, LABELS)
    term = KDCompat(kind="kd_compat", original=original, temperature=temperature).build(dims, dims)(
        signals(S), signals(T), batch
    )
    return term.sum.item() / {"tokens": 2, "sequences": 1}[term.count]


@pytest.mark.parametrize(
    ("originals", "expected"),
    [
        (["liger_kl"], [0.7083187360, 0.1992888099, 0.0514947543]),
        (["hf_distil", "distillkit"], [0.7083187360, 0.7971552395, 0.8239160682]),
        (["modelopt_hf", "maxtext"], [0.7773658119, 0.8426338008, 0.8388704859]),
        (["pkd_mean", "deit_numel", "neural_compressor_kl"], [0.2591219373, 0.2808779336, 0.2796234953]),
        (["textbrewer", "torchtune", "miniplm"], [1.5407143179, 1.2194801466, 1.1295944039]),
    ],
)
def test_the_fixture(originals, expected):
    for original in originals:
        for temperature, number in zip((1.0, 2.0, 4.0), expected, strict=True):
            assert value(original, temperature) == pytest.approx(number, abs=1e-9), (original, temperature)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 8.0])
def test_as_the_originals_call_torch(temperature):
    log_q, p = F.log_softmax(S / temperature, -1), F.softmax(T / temperature, -1)
    log_p = F.log_softmax(T / temperature, -1)
    kept = MASK[0]
    numel = S.numel()
    as_called = {
        "hf_distil": F.kl_div(log_q[kept], p[kept], reduction="batchmean") * temperature**2,
        "modelopt_hf": F.kl_div(log_q, p, reduction="batchmean") * temperature**2,
        "pkd_mean": F.kl_div(log_q, p, reduction="sum") / numel * temperature**2,
        "deit_numel": F.kl_div(log_q, log_p, reduction="sum", log_target=True) * temperature**2 / numel,
        "torchdistill_batchmean": F.kl_div(log_q, p, reduction="batchmean"),
        "textbrewer": -(p * log_q).sum(-1)[kept].mean(),
        "tinybert_mean": (-p * log_q).mean(),
    }
    for original, number in as_called.items():
        assert value(original, temperature) == pytest.approx(number.item(), abs=1e-9), original


def test_no_two_forms_are_one_number():
    """Whoever takes one for another is noticed: T = 2 tells all forms apart."""
    numbers = {form: value(original, 2.0) for original, form in ORIGINALS.items()}
    assert len(numbers) == 7
    assert len({round(number, 9) for number in numbers.values()}) == 7
