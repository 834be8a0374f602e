"""What `plan` says of whole configs."""

import json
from math import sqrt
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megadistill.cli import app
from megadistill.core.errors import UserError
from megadistill.plan.estimate import USABLE, plan
from megadistill.plan.machine import GPUS, Machine, size
from megadistill.plan.work import interval
from megadistill.run.config import load

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
"""Its teacher and tokenizer ship with the project."""
ACCUMULATING = ["batch.global_size=64", "batch.micro_size=4"]
PLACEMENTS = ["sharded", "offloaded", "own_ranks"]
EIGHT = ["batch.micro_size=4", "engine.reduce_bucket_mib=1"]


def machine(gpus=2, memory=80e9, **more):
    return Machine(gpus, memory, GPUS["h100"].bf16, **more)


def made(*changes, where=None):
    return plan(load(QUICKSTART, list(changes)), where or machine())


@pytest.fixture(scope="module")
def whole():
    return made()


def test_parameters_tokens_and_steps_are_those_of_the_config(whole):
    assert (whole.parameters.student, whole.parameters.teacher) == (1_135_744, 1_730_560)
    assert (whole.work.steps, whole.work.tokens_per_step) == (100, 32 * 128)
    assert whole.work.tokens == 100 * 32 * 128
    assert whole.fits


def test_operations_are_six_a_weight_and_token_for_the_student_and_two_for_the_teacher(whole):
    """Kaplan et al. 2020, section 2.1; and attention: 4 L d a layer and token, two and a half times that backward."""
    tables, head = (4096 + 128) * 128, 4096 * 128  # tables are read, not multiplied; the head is tied to the larger
    weights = 6 * (whole.parameters.student - tables + head) + 2 * (whole.parameters.teacher - tables + head)
    attention = 4 * 128 * 128 * (3 * 3.5 + 6)
    assert whole.work.flops / whole.work.tokens == pytest.approx(weights + attention, rel=0.01)


def test_later_batch_sizes_count():
    more = made("batch.schedule=[{from_step: 51, global_size: 64}]")
    assert more.work.tokens == (50 * 32 + 50 * 64) * 128


def test_a_measured_rate_gives_the_time():
    done = made(where=machine(tokens_per_second=4096.0))
    assert done.work.seconds == pytest.approx(100)
    assert done.work.step_seconds == pytest.approx(1)


def test_each_stage_holds_less_than_the_one_before():
    peaks = [made(f"engine.zero_stage={stage}", *EIGHT, where=machine(8)).footprint.resting for stage in (0, 1)]
    assert peaks[1]["optimizer state"] == pytest.approx(peaks[0]["optimizer state"] / 8, rel=0.01)
    sharded = made("engine.zero_stage=3", *EIGHT, where=machine(8)).footprint.resting
    assert sharded["gradients"] == pytest.approx(4 * 1_135_744 / 8, rel=0.01)


@pytest.mark.parametrize("change", ["engine.activation_checkpointing=true", "batch.micro_size=8"])
def test_what_saves_activations_saves_them(whole, change):
    assert made(change).footprint.activations < 0.75 * whole.footprint.activations


def test_recomputing_is_computed(whole):
    again = made("engine.activation_checkpointing=true")
    assert again.work.flops > 1.05 * whole.work.flops


def test_attention_maps_are_never_whole():
    """Twice the positions, twice the activations: four times where probabilities were kept."""
    short = made("batch.micro_size=1", "batch.global_size=2", "data.sequence_length=64")
    long = made("batch.micro_size=1", "batch.global_size=2", "data.sequence_length=128")
    assert long.footprint.activations < 2.1 * short.footprint.activations


def test_the_cheapest_change_is_named_and_makes_it_fit():
    needed = made("engine.reduce_bucket_mib=1", "engine.zero_stage=1").footprint.peak
    small = machine(memory=needed / USABLE * 0.9)
    tight = made("engine.reduce_bucket_mib=1", "engine.zero_stage=1", where=small)
    assert not tight.fits
    assert tight.change is not None
    mended = made("engine.reduce_bucket_mib=1", "engine.zero_stage=1", *tight.change.split(), where=small)
    assert mended.fits


def test_an_odd_micro_batch_is_made_smaller_too():
    given = ["batch.global_size=240", "batch.micro_size=15", "engine.zero_stage=2", "engine.reduce_bucket_mib=1"]
    small = machine(memory=made(*given, "batch.micro_size=6").footprint.peak / USABLE * 1.01)
    tight = made(*given, where=small)
    assert (tight.fits, tight.change) == (False, "batch.micro_size=6")


def test_accumulated_gradients_are_sent_for_every_micro_batch_from_stage_2_on():
    done = made(*ACCUMULATING)
    sent = {(p.ranks, p.zero_stage): p.sent for p in done.projections}
    assert sent[8, 2] > 5 * sent[8, 1]
    assert sent[512, 1] == pytest.approx(sent[8, 1] * (511 / 512) / (7 / 8))


def test_the_interval_is_youngs_and_dalys():
    assert interval(30, 3600 * 24) == pytest.approx(sqrt(2 * 30 * 3600 * 24) - 30)


def test_answers_that_were_kept_need_no_teacher(whole):
    kept = "teacher={kind: cached, dir: nowhere, of: {kind: online, path: megadistill/assets/quickstart_teacher}}"
    objectives = "objectives=[{kind: soft_ce, temperature: 2}]"
    student = "student={kind: hf, architecture: gpt2, config: {n_layer: 3, n_embd: 128, n_head: 2, n_positions: 128}}"
    cached = made(kept, objectives, student)
    assert cached.footprint.resting["teacher's weights"] == 0
    assert cached.work.flops < whole.work.flops


def test_a_run_without_a_teacher_is_planned():
    alone = "student={kind: hf, architecture: gpt2, config: {n_layer: 3, n_embd: 128, n_head: 2, n_positions: 128}}"
    done = made("teacher=null", "objectives=[{kind: hard_ce}]", alone)
    assert done.parameters.teacher == 0
    assert done.footprint.answers == 0


def test_where_a_teacher_is_decides_what_students_hold_of_it(whole):
    found = {p: made(f"teacher.placement={p}", where=machine(3 if p == "own_ranks" else 2)) for p in PLACEMENTS}
    assert {plan.footprint.answers for plan in found.values()} == {whole.footprint.answers}
    weights = {p: plan.footprint.resting["teacher's weights"] for p, plan in found.items()}
    values = 4 * whole.parameters.teacher // 2  # bf16 or fp16 on a GPU
    assert weights["offloaded"] == values  # DeepSpeed gathers up to 50 million values ahead: all of so small a model
    assert weights["sharded"] == values * 3 // 2
    assert weights["own_ranks"] == 2 * 4096 * 128
    apart = found["own_ranks"].footprint
    assert apart.peak < whole.footprint.peak
    assert apart.teacher_rank > values
    assert [plan.footprint.teacher_rank for p, plan in found.items() if p != "own_ranks"] == [0, 0]


def test_micro_size_auto_is_the_most_that_fit_by_the_estimate(whole):
    auto = ["batch.micro_size=auto", "batch.global_size=64"]
    assert made(*auto).micro_size == 32, "a rank's whole share: there is room"
    sizes = {rows: made(f"batch.micro_size={rows}", auto[1]).footprint.peak for rows in (1, 8, 16)}
    assert made(*auto, where=machine(memory=(sizes[8] + sizes[16]) / 2 / USABLE)).micro_size == 8
    tight = made(*auto, where=machine(memory=sizes[1] / 2 / USABLE))
    assert (tight.micro_size, tight.fits) == (1, False)
    page = CliRunner().invoke(app, ["plan", str(QUICKSTART), *auto, "--gpus", "2"])
    assert page.exit_code == 0, page.output
    assert "1 x 32 rows (micro_size: auto is the most that fit" in page.output


def test_what_is_projected_is_computing_and_what_rings_send():
    """By hand, at 8, 64 and 512 GPUs; nothing overlaps."""
    where = machine()
    done = made("batch.global_size=64", "batch.micro_size=8", where=where)
    values, computing, micro = done.parameters.learned, done.work.step_seconds, 4
    assert [p.ranks for p in done.projections] == [8] * 3 + [64] * 3 + [512] * 3
    for found in done.projections:
        gradients = {1: 2, 2: 2 * micro, 3: micro}[found.zero_stage] * 4 * values
        weights = {1: 1, 2: 1, 3: micro}[found.zero_stage] * 4 * values
        sent = (found.ranks - 1) / found.ranks * (gradients + weights)
        assert found.sent == pytest.approx(sent)
        rate = where.inside if found.ranks == 8 else where.outside
        assert found.seconds == pytest.approx(computing + sent / rate)
        assert found.efficiency == pytest.approx(computing / found.seconds)


def test_sizes_of_memory():
    assert size("80GB") == 80e9
    assert size("64 GiB") == 64 * 2**30
    for wrong in ("80", "GB", "-1GB", "many"):
        with pytest.raises(UserError, match="no size"):
            size(wrong)


def test_the_command_prints_it_and_tells_by_its_exit_code():
    runner = CliRunner()
    page = runner.invoke(app, ["plan", str(QUICKSTART), "--gpus", "2"])
    assert page.exit_code == 0, page.output
    for word in ("1,135,744", "optimizer state", "fits", "best interval", "ZeRO 3", "GPU-hours"):
        assert word in page.output
    tightest = ["engine.zero_stage=3", "engine.activation_checkpointing=true", "batch.micro_size=1"]
    told = runner.invoke(app, ["plan", str(QUICKSTART), *tightest, "--gpus", "2", "--memory", "1MB", "--json"])
    assert told.exit_code == 2
    found = json.loads(told.stdout)
    assert found["fits"] is False
    assert found["change"] is None  # nothing helps there
    assert found["work"]["epochs"] is None  # of text that need not be there
    assert isinstance(runner.invoke(app, ["plan", str(QUICKSTART), "--gpu", "abacus"]).exception, UserError)
