"""Does the report show what a run directory holds, and say what should make a reader careful?"""

from __future__ import annotations

import json
import math
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from megadistill.core.errors import UserError
from megadistill.report.chart import Line, chart
from megadistill.report.collect import collect, warnings
from megadistill.report.html import report
from megadistill.report.numbers import number, short
from megadistill.report.profile import profiles
from megadistill.report.status import describe
from megadistill.report.tables import evaluations
from megadistill.report.timeline import timeline
from megadistill.testing.synthetic_run import write_run


def test_a_page_holds_everything_and_loads_nothing(tmp_path: Path) -> None:
    page = report([write_run(tmp_path, "distilled")]).read_text()
    assert not re.search(r"(src|href)=(?!.data:,)|https?://|<script|@import|url\(", page)
    for text in (
        "held-out perplexity",
        "memory of rank 0",
        "by token frequency",
        "accuracy by confidence",
        "against preset quickstart",
        "objective soft_ce",
        "gradient share of mlm",
        "learning rate",
        "4,300,000",
        "resumed at step 200",
    ):
        assert text in page
    assert "A CPU &lt;with&gt; 2 cores" in page  # escaped


def test_what_prepare_counted_is_shown_where_the_shards_are(tmp_path: Path) -> None:
    run = write_run(tmp_path, "distilled")
    config = json.loads((run / "config.resolved.yaml").read_text())
    config["data"] = {"dir": str(tmp_path / "shards"), "corpora": [{"name": "wiki"}, {"name": "gone"}]}
    (run / "config.resolved.yaml").write_text(json.dumps(config))
    assert "contaminated" not in report([run]).read_text()
    (tmp_path / "shards" / "wiki").mkdir(parents=True)
    train = {"documents": 10, "tokens": 123_456, "rows": 1000, "padding_share": 0.0312}
    stats = {"name": "wiki", "documents": 11, "contaminated": 7, "document_lengths": {"8-15": 4, "16-31": 8}}
    (tmp_path / "shards" / "wiki" / "stats.json").write_text(json.dumps(stats | {"train": train}))
    page = report([run]).read_text()
    for text in ("1 corpus", "123,456", "3.1%", '<td class="n">7</td>', "16-31 tokens: 8"):
        assert text in page


def test_several_runs_stand_side_by_side_next_to_each_other_on_disk(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "distilled"), write_run(tmp_path, "plain", offset=0.2)]
    page = report(runs)
    assert page == tmp_path / "report.html"
    text = page.read_text()
    assert text.count('<polyline class="line c0') >= 4
    assert text.count('<polyline class="line c1') >= 4


def test_a_repeated_step_counts_once_as_it_was_last_written(tmp_path: Path) -> None:
    run = collect(write_run(tmp_path, "distilled"))
    steps = [step for step, _ in run.series("train/loss")]
    assert steps == list(range(1, 301))
    assert len(run.metrics) == 310
    assert run.resumes == [200]


def test_tables_leave_out_what_nobody_measured(tmp_path: Path) -> None:
    path = write_run(tmp_path, "distilled")
    found = {table.title: table for table in evaluations([collect(path)])}
    held_out = dict(found["Held-out text"].rows)
    assert held_out["perplexity"] == ["9.4", "6.05"]  # of the finished student, not on the way; and its teacher's
    assert [name for name, _ in found["Held-out text"].columns] == ["distilled", "teacher"]
    assert dict(found["WikiText"].rows)["perplexity"] == ["61.5"]
    wikitext = json.loads((path / "evaluation" / "wikitext.json").read_text())
    (path / "evaluation" / "wikitext.json").write_text(json.dumps(wikitext | {"teacher_loss": 3.25}))
    (path / "evaluation" / "heldout.json").unlink()
    assert dict(evaluations([collect(path)])[1].rows)["loss (nats)"] == ["–", "3.25"]
    report([path])
    for file in (path / "evaluation").iterdir():
        file.unlink()
    (on_the_way,) = evaluations([collect(path)])
    assert dict(on_the_way.rows)["perplexity"] == [number(collect(path).last("heldout/perplexity"))]
    (path / "metrics.jsonl").write_text("")
    assert evaluations([collect(path)]) == []
    assert list(profiles([collect(path)])) == []
    assert "no metrics were written yet" in warnings(collect(path))
    report([path])


def test_scores_of_an_earlier_step_are_not_taken_for_the_last(tmp_path: Path) -> None:
    """As after `train.more_steps`."""
    path = write_run(tmp_path, "distilled")
    scores = json.loads((path / "evaluation" / "heldout.json").read_text())
    (path / "evaluation" / "heldout.json").write_text(json.dumps(scores | {"step": 200}))
    run = collect(path)
    assert warnings(run) == ["heldout was scored at step 200, and the run is at 300: evaluate it again"]
    assert dict(evaluations([run])[0].rows)["perplexity"][0] == number(run.last("heldout/perplexity"))


def test_different_teachers_have_columns_of_their_own(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, name) for name in ("a", "b", "c")]
    scores = json.loads((runs[2] / "evaluation" / "heldout.json").read_text())
    (runs[2] / "evaluation" / "heldout.json").write_text(json.dumps(scores | {"teacher_loss": 1.5}))
    table = evaluations([collect(run) for run in runs])[0]
    assert [name for name, _ in table.columns] == ["a", "b", "c", "a: its teacher", "c: its teacher"]
    assert dict(table.rows)["loss (nats)"][3:] == ["1.8", "1.5"]


def test_distributions_are_drawn_as_they_were_measured(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, name, offset=n) for n, name in enumerate(("distilled", "plain"))]
    runs = [replace(collect(path), color=n) for n, path in enumerate(paths)]
    kl, loss, sure = profiles(runs)
    assert kl.drawing.count('class="bar c0"') == kl.drawing.count('class="bar c1"') == 10
    assert loss.drawing.count("level") == 10  # the teacher's, which both runs have
    heights = [float(h) for h in re.findall(r'class="bar c0"[^>]*height="([\d.]+)"', loss.drawing)]
    expected = runs[0].evaluation["heldout"]["by_frequency"]["loss"]
    assert [h / heights[0] for h in heights] == pytest.approx([v / expected[0] for v in expected], rel=0.01)
    assert [line.label for line, _ in sure.legend] == ["distilled", "plain", "teacher"]
    assert len(sure.legend[0][0].points) == 9  # a bin without targets has no dot
    assert sure.legend[0][1] == runs[0].evaluation["heldout"]["calibration_error"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('{"event": "resume", "attempt": 3, "step": 50}', "though 200 was saved"),
        (
            '{"event": "save", "attempt": 2, "step": 300}\n{"event": "resume", "attempt": 3, "step": 300}',
            "killed",
        ),
        ('{"event": "nonfinite", "attempt": 1, "step": 7}', "1 skipped update"),
        ('{"event": "start", "attempt": 3, "not_bitwise": ["threads: 1 before, 2 now"]}', "not bitwise"),
    ],
)
def test_warnings(tmp_path: Path, row: str, told: str) -> None:
    path = write_run(tmp_path, "distilled")
    assert warnings(collect(path)) == []
    with (path / "journal.jsonl").open("a") as journal:
        journal.write(row + "\n")
    assert told in warnings(collect(path))[0]


def test_a_rollback_is_no_death_and_what_it_undoes_is_not_missed(tmp_path: Path) -> None:
    path = write_run(tmp_path, "distilled")
    with (path / "journal.jsonl").open("a") as journal:
        journal.write('{"event": "rollback", "attempt": 2, "first": 80, "last": 300}\n')
        journal.write('{"event": "resume", "attempt": 3, "step": 50}\n')
    (told,) = warnings(collect(path))
    assert told.startswith("1 return(s) to an earlier checkpoint")


def test_a_copy_that_failed_after_the_end_is_told_and_leaves_the_end_one(tmp_path: Path) -> None:
    path = write_run(tmp_path, "distilled")
    (path / "STATUS").unlink()
    with (path / "journal.jsonl").open("a") as journal:
        journal.write('{"event": "uncopied", "attempt": 2, "why": "no room"}\n')
    assert "unknown" not in report([path]).read_text()
    with (path / "journal.jsonl").open("a") as journal:
        journal.write('{"event": "resume", "attempt": 3, "step": 300}\n')
    (told,) = warnings(collect(path))
    assert "not copied to remote storage" in told


def test_a_loss_that_is_not_finite_is_told_not_drawn(tmp_path: Path) -> None:
    path = write_run(tmp_path, "distilled")
    with (path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 301, "attempt": 2, "train/loss": NaN}\n')
    assert any("not finite" in text for text in warnings(collect(path)))
    scores = json.loads((path / "evaluation" / "heldout.json").read_text()) | {"kl": math.nan}
    scores["by_frequency"]["kl"][3] = scores["calibration"]["accuracy"][3] = math.nan  # of a model that has diverged
    (path / "evaluation" / "heldout.json").write_text(json.dumps(scores))
    assert not re.search(r"\bnan\b", report([path]).read_text().lower())


def test_a_folder_that_is_no_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run directory"):
        report([tmp_path])


def test_status_says_where_the_run_stands(tmp_path: Path) -> None:
    text = describe(write_run(tmp_path, "distilled"))
    for part in ("done", "300 of 300", "step-00000200-a0001", "attempt 2 step 200  resume"):
        assert part in text


def test_status_says_how_long_ago_a_running_run_was_heard_of(tmp_path: Path) -> None:
    """One that was killed is `running` for ever by its STATUS."""
    path = write_run(tmp_path, "distilled")
    (path / "heartbeats").mkdir()
    (path / "heartbeats" / "rank-0000.json").write_text("{}")
    assert "last heard of" not in describe(path)
    (path / "STATUS").write_text(json.dumps({"state": "stopped"}))
    config = json.loads((path / "config.resolved.yaml").read_text())
    (path / "config.resolved.yaml").write_text(json.dumps(config | {"train": {"steps": 900}}))
    assert "warning: stands at step 300 of 900" in describe(path)
    (path / "STATUS").write_text(json.dumps({"state": "running"}))
    assert "warning" not in describe(path)
    assert re.search(r"last heard of +\d s ago", describe(path))
    os.utime(path / "heartbeats" / "rank-0000.json", (0, time.time() - 7200))
    assert re.search(r"last heard of +120 min ago", describe(path))


def test_steps_that_were_added_count(tmp_path: Path) -> None:
    path = write_run(tmp_path, "distilled")
    config = json.loads((path / "config.resolved.yaml").read_text())
    config["train"] = {"steps": 200, "more_steps": [60, 40]}
    (path / "config.resolved.yaml").write_text(json.dumps(config))
    assert "step 300 of 300" in report([path]).read_text()


@pytest.mark.parametrize("points", [[(1, 2.0)], [(1, 0.0), (2, 0.0)], [(1, 5e-9), (2, 3e9)], [(1, -1.0), (9, -1.0)]])
@pytest.mark.parametrize("log", [False, True])
def test_any_points_make_a_chart_inside_its_frame(points: list[tuple[float, float]], log: bool) -> None:
    svg = chart("x", [Line("run", points, 0)], log=log)
    places = re.findall(r'<path class="dot[^"]*" d="M([\d.]+) ([\d.]+)h0"', svg)
    assert len(places) == len(points)
    assert all(0 <= float(place) <= 1000 for pair in places for place in pair)
    assert all(0 <= float(place) <= 100 for place in re.findall(r"(?:left|bottom):([\d.]+)%", svg))


def test_the_timeline_shows_attempts_events_and_losses_by_time() -> None:
    def row(minute: int, attempt: int, **more: object) -> dict[str, object]:
        return {"time": f"2026-01-01T10:{minute:02d}:00+00:00", "attempt": attempt, **more}

    journal = [row(0, 1, event="start"), row(4, 1, event="save", step=10), row(6, 1, event="rollback", step=12)]
    journal += [row(7, 2, event="resume", step=10), row(20, 2, event="signal", step=40)]
    metrics = [row(2, 1, step=5, **{"train/loss": 3.0}), row(10, 2, step=20, **{"train/loss": math.nan})]
    svg = timeline(journal, metrics)
    assert svg.count('class="bar attempt"') == 2
    assert [svg.count(f'class="dot {kind}"') for kind in ("saved", "bad", "stop")] == [1, 1, 1]
    assert "<title>rollback at step 12, 6 min</title>" in svg
    assert "nan" not in svg
    assert timeline([], metrics) == ""


def test_no_points_make_no_chart() -> None:
    assert chart("x", [Line("run", [], 0)]) == ""


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (12345.6, "12,346"), (3.14159, "3.142"), (0.0005, "5e-4"), (-2, "-2")]
)
def test_numbers_read_as_people_write_them(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(950, "950"), (9999, "9,999"), (25_000, "25k"), (1.5e9, "1.5B"), (0.25, "0.25")]
)
def test_numbers_at_axes_are_short(value: float, text: str) -> None:
    assert short(value) == text
