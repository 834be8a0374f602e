"""Do one's own scores stand beside the published ones, each measured as the other, with nothing filled in?"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from megadistill.core.errors import UserError
from megadistill.report.collect import collect
from megadistill.report.html import report
from megadistill.report.models import GLUE, own, published
from megadistill.report.paper import common_tasks, paper_plots, paper_table
from megadistill.testing.synthetic_run import write_run


def spread(*scores: float, **more: float) -> dict[str, object]:
    middle = sorted(scores)[len(scores) // 2]
    return {"median": middle, "scores": list(scores), "num_parameters": 11_000_000, **more}


def write_scores(folder: Path, parameters: int, seconds: float, lower: float = 0.0, threads: int = 2) -> Path:
    """As `evaluate --tasks cola,sst2,mnli,squad,speed` leaves them."""
    folder.mkdir(parents=True)
    mnli = {"dev_matched/accuracy": 0.82 - lower, "dev_mismatched/accuracy": 0.81 - lower}
    squad = {"dev/exact_match": 70 - 100 * lower, "dev/f1": 80 - 100 * lower}
    summary = {
        "model": "m",
        "cola": spread(0.5 - lower, 0.52 - lower, 0.54 - lower),
        "sst2": spread(0.9 - lower),
        "mnli": spread(0.815 - lower, **mnli),
        "squad": spread(80 - 100 * lower, **squad),
        "macro": 0.7,
        "macro_without_wnli": 0.72,
        "missing_of_glue": ["wnli", "rte"],
    }
    speed = {"num_parameters": parameters, "seconds_batch_1": seconds, "threads": threads, "num_rows": 1500, "flops": 7}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "speed.json").write_text(json.dumps(speed))
    return folder


def cells(table, title):
    """Column -> (text, small letters) of a model."""
    ((_, found),) = [row for _, rows in table.groups for row in rows if row[0].name == title]
    return {column: (cell.text, cell.small) for column, cell in zip(table.columns, found, strict=True)}


def tables(*folders: Path):
    models = list(dict.fromkeys(own([collect(folder) for folder in folders]).values()))
    return paper_table(models, models[0]), models


def test_scores_are_shown_with_what_they_keep_of_the_teachers(tmp_path):
    teacher = write_scores(tmp_path / "big-tasks", 28_000_000, 60.0)
    table, _ = tables(teacher, write_scores(tmp_path / "small", 14_000_000, 24.0, lower=0.1))
    its, found = cells(table, "big"), cells(table, "small")
    assert its["CoLA"] == ("52.0", ("±2.0",))
    assert found["CoLA"] == ("42.0", ("±2.0", "80.8%"))
    assert found["SST-2"] == ("80.0", ("88.9%",))
    assert found["MNLI m/mm"] == ("72.0/71.0", ("87.7%",))
    assert found["SQuAD EM/F1"] == ("60.0/70.0", ("87.5%",))  # by F1
    assert [found[key][0] for key in ("parameters", "smaller", "seconds", "faster")] == ["14M", "2×", "24", "2.5×"]
    assert [its[key][0] for key in ("smaller", "faster")] == ["", ""]
    assert found["GLUE"] == found["IMDb"] == found["RTE"] == ("", ())  # nobody measured them here
    assert found["mean of 3"] == ("64.5", ("86.6%",))
    assert "Mean of 3: CoLA, MNLI, SST-2." in table.note


def test_published_models_are_as_their_papers_have_them():
    groups = {group.title: group for group in published()}
    distil = groups["DistilBERT"]
    teacher, student = distil.models[:2]
    assert teacher is distil.teacher
    glue = [student.scores[task].value for task in GLUE]
    assert sum(glue) / 9 == pytest.approx(student.scores["macro"].value, abs=0.05)
    assert student.faster_than(teacher) == pytest.approx(1.63, abs=0.005)  # 60 % faster
    assert student.smaller_than(teacher) == pytest.approx(1 / 0.6)  # 40 % smaller
    assert student.scores["macro"].value / teacher.scores["macro"].value == pytest.approx(0.97, abs=0.002)
    tiny = {model.name: model for model in groups["TinyBERT"].models}
    four, base = tiny["TinyBERT, 4 layers"], tiny["BERT-base"]
    assert four.smaller_than(base) == pytest.approx(7.5, abs=0.05)
    assert (four.faster_than(base), base.faster_than(base)) == (9.4, 1)
    for model in (four, base):  # their mean counts MNLI's two parts apart
        parts = [
            part
            for task in model.scores
            if task not in ("macro_without_wnli", "squad")
            for part in model.scores[task].parts
        ]
        assert sum(parts) / 9 == pytest.approx(model.scores["macro_without_wnli"].value, abs=0.06)
    bilstm = groups["BiLSTM"]
    assert bilstm.models[-1].smaller_than(bilstm.teacher) == pytest.approx(349, abs=0.5)


def test_only_papers_that_have_one_of_the_tasks_are_shown(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "summary.json").write_text(json.dumps({"imdb": spread(0.9)}))
    table, _ = tables(tmp_path / "a")
    assert [group.title for group, _ in table.groups] == ["Measured here", "DistilBERT"]


def test_what_was_timed_otherwise_is_not_compared(tmp_path):
    folders = [write_scores(tmp_path / name, 10, 4.0, threads=n) for n, name in enumerate(("teacher", "student"), 1)]
    table, _ = tables(*folders)
    found = cells(table, "student")
    assert (found["seconds"][0], found["faster"][0]) == ("4", "")
    assert "student: timed otherwise than teacher" in table.note


def test_a_mean_is_over_what_all_have(tmp_path):
    folders = [write_scores(tmp_path / name, 10, 4.0) for name in ("a", "b")]
    summary = json.loads((folders[1] / "summary.json").read_text())
    del summary["cola"]
    (folders[1] / "summary.json").write_text(json.dumps(summary))
    one = write_scores(tmp_path / "one", 10, 4.0)
    (one / "summary.json").write_text(json.dumps({"rte": spread(0.6)}))  # learnt one task alone
    assert common_tasks(tables(*folders, one)[1]) == ["mnli", "sst2"]
    assert common_tasks(tables(one)[1]) == []


def test_runs_on_a_task_are_one_model_with_their_seeds(tmp_path):
    runs = []
    for seed, score in ((1, 0.91), (2, 0.93), (3, 0.92)):
        run = write_run(tmp_path, f"hinton-seed{seed}")
        config = json.loads((run / "config.resolved.yaml").read_text())
        config["task"] = {"kind": "glue", "name": "sst2"}
        (run / "config.resolved.yaml").write_text(json.dumps(config))
        (run / "evaluation" / "task.json").write_text(json.dumps({"score": score, "num_parameters": 5, "step": 9}))
        runs.append(run)
    table, models = tables(*runs)
    assert len(models) == 1
    assert cells(table, "hinton")["SST-2"] == ("92.0", ("±1.0",))


def test_bars_hold_every_score_and_seed_also_below_zero(tmp_path):
    folders = [write_scores(tmp_path / "teacher", 28, 60.0), write_scores(tmp_path / "student", 14, 24.0, lower=0.6)]
    _, models = tables(*folders)
    scores, shares = paper_plots(models, models[0])
    assert scores.drawing.count('class="bar') == 8
    assert scores.drawing.count('class="dot seed') == 6  # CoLA's, three of each
    assert "<title>student, CoLA: -8</title>" in scores.drawing
    assert [line.label for line, _ in shares.legend] == ["student", "teacher"]
    assert "student, parameters: 50" in shares.drawing
    assert "student, seconds: 40" in shares.drawing
    tall = [float(high) for high in re.findall(r'height="([\d.]+)"', scores.drawing)]
    assert all(0 < high <= 1000 for high in tall)
    (alone,) = paper_plots(models[:1], None)
    assert alone.drawing.count('class="bar') == 4


def test_a_page_of_models_that_no_run_made(tmp_path):
    teacher = write_scores(tmp_path / "big-tasks", 28_000_000, 60.0)
    student = write_scores(tmp_path / "student", 14_000_000, 24.0, lower=0.1)
    page = report([student], teacher=teacher).read_text()
    for text in ("Sanh et al. 2019", "beside what the papers published", "80.8%", "Size and speed", "student · big"):
        assert text in page
    assert report([student]) == student / "report.html"
    assert "Name the teacher" in (student / "report.html").read_text()
    run = write_run(tmp_path, "run")
    mixed = report([student, run], tmp_path / "mixed.html").read_text()
    assert "run · student" in mixed  # runs first: they have more to say
    with pytest.raises(UserError, match="was not scored on tasks, nor timed"):
        report([student], teacher=run)


def test_a_summary_of_something_else_is_no_scores(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"teacher": {"loss": 1.0}}))
    with pytest.raises(UserError, match="no run directory and no folder of scores"):
        report([tmp_path])
