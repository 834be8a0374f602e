"""What differs: a run's config from its preset, runs from one another, and what that was worth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from megadistill.report.arms import comparison
from megadistill.report.collect import RunFacts, collect
from megadistill.report.differences import among, origin
from megadistill.run import presets
from megadistill.run.config import dump, load
from megadistill.testing.synthetic_run import write_run


def run_of(folder: Path, file: Path | str, *overrides: str) -> RunFacts:
    """A run as `train FILE OVERRIDES` leaves it."""
    path = write_run(folder, "run")
    config = load(presets.resolve(Path(file)), overrides)
    (path / "config.resolved.yaml").write_text(yaml.safe_dump(dump(config)))
    (path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    (path / "command.txt").write_text(
        " ".join(["megadistill train", str(file), *(f"'{o}'" for o in overrides), "--fresh"])
    )
    return collect(path)


def told(found):
    return {change.key: (change.before, change.now, change.overridden) for change in found.changes}


def test_a_preset_and_what_the_command_line_changed_of_it(tmp_path):
    overrides = ("train.steps=7", "student.init={kind: random}", "objectives.0.weight=3", "evaluate.rows=128")
    found = origin(run_of(tmp_path, "quickstart", *overrides))
    assert (found.file, found.overrides, found.base) == ("quickstart", list(overrides), "preset quickstart")
    assert told(found) == {  # evaluate.rows is as it was
        "train.steps": ("100", "7", True),
        "student.init": ("{kind: teacher_layers, layers: [0, 2, 4]}", "{kind: random}", True),
        "objectives.0.weight": ("5", "3.0", True),
    }


def test_a_run_of_a_preset_as_it_is_differs_in_nothing(tmp_path):
    for preset in presets.presets():
        found = origin(run_of(tmp_path / preset.name.replace("/", "-"), preset.path))
        assert (found.base, found.changes) == (f"preset {preset.name}", ())


@pytest.mark.parametrize("how", ["extends", "copied"])
def test_a_file_of_ones_own_is_compared_with_what_it_comes_from(tmp_path, how):
    mine = tmp_path / "mine.yaml"
    if how == "extends":
        mine.write_text(f"extends: {presets.named('quickstart').path}\ntrain: {{steps: 9}}\n")
    else:
        presets.copy("quickstart", mine)
        mine.write_text(mine.read_text().replace("train: {steps: 100}", "train: {steps: 9}"))
    run = run_of(tmp_path, mine, "seed=4")
    found = origin(run)
    assert found.base == "preset quickstart"
    assert told(found) == {"train.steps": ("100", "9", False), "seed": ("1", "4", True)}
    mine.unlink()
    assert origin(run).base == ""


def test_a_file_that_comes_from_no_preset_is_compared_with_itself(tmp_path):
    mine = tmp_path / "mine.yaml"
    shutil.copy(presets.named("quickstart").path, mine)
    mine.write_text("\n".join(line for line in mine.read_text().splitlines() if not line.startswith("#")))
    found = origin(run_of(tmp_path, mine, "train.steps=7"))
    assert found.base == str(mine)
    assert told(found) == {"train.steps": ("100", "7", True)}


def test_runs_differ_where_their_configs_do(tmp_path):
    runs = [run_of(tmp_path / "a", "quickstart", "name=a"), run_of(tmp_path / "b", "quickstart_plain", "seed=2")]
    assert dict(among(runs)) == {
        "objectives": [
            "[{kind: soft_ce, temperature: 2.0, weight: 5.0}, "
            "{kind: hard_ce, weight: 2.0}, {kind: cosine, weight: 1.0}]",
            "[{kind: hard_ce, weight: 1.0}]",
        ],
        "seed": ["1", "2"],
    }


def changed(path: Path, **section: object) -> RunFacts:
    config = json.loads((path / "config.resolved.yaml").read_text())
    (path / "config.resolved.yaml").write_text(json.dumps(config | section))
    return collect(path)


def test_arms_are_compared_seed_by_seed(tmp_path):
    base = [collect(write_run(tmp_path, f"all-seed{n}", offset=0.01 * n)) for n in (1, 2)]
    other = [write_run(tmp_path, f"no_cosine-seed{n}", offset=0.01 * n + 0.05 * n) for n in (1, 2, 3)]
    runs = [*base, *(changed(path, objectives=[{"kind": "hard_ce", "weight": 1.0}]) for path in other)]
    table = comparison(runs)
    rows = {name: dict(zip([name for name, _ in table.columns], cells, strict=True)) for name, cells in table.rows}
    assert list(rows) == ["all", "no_cosine"]
    assert rows["all"]["held-out loss"] == "2.2557 ± 0.0071"
    assert rows["no_cosine"]["above all"] == "+0.0750 ± 0.0354"  # of the two seeds that both have
    assert rows["no_cosine"]["seeds"] == "3"
    assert rows["no_cosine"]["differs from all in"] == "objectives"
    assert comparison(base) is None  # one arm


def test_a_seed_without_scores_yet_stays_out_of_the_difference(tmp_path):
    base = [write_run(tmp_path, f"all-seed{n}", offset=0.01 * n) for n in (1, 2)]
    other = [write_run(tmp_path, f"plain-seed{n}", offset=0.01 * n + 0.05) for n in (1, 2)]
    for path in other:
        changed(path, objectives=[{"kind": "hard_ce", "weight": 1.0}])
    for path in (*base, *other):
        shutil.rmtree(path / "evaluation")
    (other[0] / "metrics.jsonl").write_text("")
    table = comparison([collect(path) for path in (*base, *other)])
    assert table.rows[1][1][1].startswith("+0.0500")
    (base[1] / "metrics.jsonl").write_text("")  # no seed that both have scores of
    table = comparison([collect(path) for path in (*base, *other)])
    assert table.rows[1][1][1].startswith("+0.0600")


def cut(path: Path, step: int) -> None:
    """Leave of a run what it was after `step`."""
    lines = (path / "metrics.jsonl").read_text().splitlines()
    (path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step))
    file = path / "evaluation" / "heldout.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"step": step}))


@pytest.mark.parametrize("evaluated", [True, False])
def test_runs_on_their_way_are_compared_after_one_step(tmp_path, evaluated):
    base = [write_run(tmp_path, f"all-seed{n}") for n in (1, 2)]
    other = [write_run(tmp_path, f"plain-seed{n}", offset=0.05) for n in (1, 2)]
    for path in other:
        changed(path, objectives=[{"kind": "hard_ce", "weight": 1.0}])
    cut(other[1], 170)  # its last look was after 150
    if not evaluated:
        for path in (*base, *other):
            shutil.rmtree(path / "evaluation")
    runs = [collect(path) for path in (*base, *other)]
    table = comparison(runs)
    assert table.note.startswith("After step 150. ")
    assert table.rows[0][1][0] == f"{dict(runs[0].series('heldout/loss'))[150]:.4f} ± 0.0000"
    assert table.rows[1][1][1] == "+0.0500 ± 0.0000"
    alone = comparison([runs[0], runs[3]])
    assert alone.rows[1][1][1] == "+0.0500"  # the rows that `evaluate` scored were other steps'


@pytest.mark.parametrize("evaluated", [True, False])
def test_finished_runs_of_different_lengths_are_compared_at_their_ends(tmp_path, evaluated):
    paths = [write_run(tmp_path, "short"), write_run(tmp_path, "long", steps=1400, offset=0.05)]
    if not evaluated:
        for path in paths:
            shutil.rmtree(path / "evaluation")
    runs = [collect(path) for path in paths]
    table = comparison(runs)
    assert table.note.startswith("Each run after its last step: 300 or 1,400. ")
    if evaluated:
        assert table.rows[1][1][1] == "+0.0500 ± 0.0000"
    else:
        assert [cells[0] for _, cells in table.rows] == [f"{run.last('heldout/loss'):.4f}" for run in runs]


def test_a_longer_run_on_its_way_is_compared_where_the_shorter_one_ended(tmp_path):
    paths = [write_run(tmp_path, "short"), write_run(tmp_path, "long", steps=1400, offset=0.05)]
    cut(paths[1], 1200)
    table = comparison([collect(path) for path in paths])
    assert table.note.startswith("After step 300. ")
    assert table.rows[1][1][1] == "+0.0500"


def test_single_runs_are_compared_row_by_row(tmp_path):
    a = collect(write_run(tmp_path, "a"))
    path = write_run(tmp_path, "b")
    rows = json.loads((path / "evaluation" / "heldout_rows.json").read_text())
    rows["nll"] = [value + 100 * gap for value, gap in zip(rows["nll"], [0.1, 0.2, 0.3, 0.2, 0.2] * 2, strict=True)]
    (path / "evaluation" / "heldout_rows.json").write_text(json.dumps(rows))
    scores = json.loads((path / "evaluation" / "heldout.json").read_text())
    (path / "evaluation" / "heldout.json").write_text(json.dumps(scores | {"loss": scores["loss"] + 0.2}))
    b = changed(path, optimizer={"learning_rate": 1})
    # ten equal rows: the standard deviation of their gaps over the root of ten
    assert comparison([a, b]).rows[1][1][1] == f"+0.2000 ± {0.0666667 / 10**0.5:.4f}"


def test_scores_of_other_text_are_not_compared(tmp_path):
    a, path = collect(write_run(tmp_path, "a")), write_run(tmp_path, "b")
    scores = json.loads((path / "evaluation" / "heldout.json").read_text())
    (path / "evaluation" / "heldout.json").write_text(json.dumps(scores | {"num_targets": 7.0}))
    seen = comparison([a, changed(path, optimizer={"learning_rate": 1})])
    assert seen.rows[0][1][0] == f"{a.last('heldout/loss'):.4f}"  # as training saw both
    assert comparison([a, changed(path, evaluate={"rows": 3})]) is None
