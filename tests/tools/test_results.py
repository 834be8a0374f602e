"""The README's numbers are those of the recorded runs, and quickstart's summary says what its runs did."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def tools_import_each_other(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_holds_what_the_recorded_results_give():
    results = tool("results")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == results.with_tables(readme, results.tables())


def test_every_recorded_quickstart_was_better_than_plain_and_resumed_bitwise():
    summaries = [json.loads(path.read_text()) for path in ROOT.glob("tools/results/quickstart-*/summary.json")]
    for summary in summaries:
        assert summary["resumed_bitwise"] is True
        assert summary["first_process"] == summary["resumed_process"]
        assert summary["gain"]["nats"] > 3 * summary["gain"]["standard_error"]


def recorded(name):
    found = json.loads((ROOT / "tools" / "results" / f"{name}.json").read_text())
    return found.get("result", found)


@pytest.mark.parametrize(
    ("name", "ratio", "least", "most"),
    [
        ("step/cpu", "speed_vs_textbook", 1.1, None),
        ("step/cpu", "masked_speed_vs_textbook", 1.25, None),
        ("step/cpu", "memory_vs_textbook", None, 0.5),
        ("head/cpu", "time_vs_eager", None, 0.55),
        ("head/cpu", "memory_vs_eager", None, 0.25),
        ("head/cpu", "masked_time_vs_eager", None, 0.2),
        ("head/cpu", "time_vs_best_peer", None, 1.0),
        ("head/cpu", "memory_vs_best_peer", None, 1.0),
    ],
)
def test_what_was_measured_last_meets_its_goal(name, ratio, least, most):
    found = recorded(name)["ratios"][ratio]
    assert least is None or found >= least
    assert most is None or found <= most


def test_counterfactual_steps_and_kept_answers_meet_their_goals():
    assert recorded("counterfactual/bench")["ratio"] <= 1.9
    kept = {name: row for name, row in recorded("cache/bench").items() if isinstance(row, dict)}
    assert len(kept) == 2
    for name, row in kept.items():
        assert row["bytes_per_token"] <= 40
        assert row["rows_found"] == row["rows_asked"]
        assert name.startswith("top_k") or abs(row["bias"]) <= row["bias_95"]


@pytest.fixture
def runs(tmp_path):
    """Two evaluated runs, the first killed after step 40 and resumed from step 10."""
    for name, nll in (("distilled", [2.0, 3.0, 4.0]), ("plain", [2.2, 3.5, 4.1])):
        folder = tmp_path / name
        (folder / "evaluation").mkdir(parents=True)
        scores = {"perplexity": 10.0, "num_parameters": 5, "agreement_top1": 0.5}
        scores |= {"teacher_perplexity": 9.0, "teacher_num_parameters": 9}
        (folder / "evaluation" / "heldout.json").write_text(json.dumps(scores))
        (folder / "evaluation" / "heldout_rows.json").write_text(json.dumps({"nll": nll, "targets": [1, 1, 1]}))
        rows = [row(step, 1) for step in range(1, 41)]
        if name == "distilled":
            rows += [row(step, 2) for step in range(11, 51)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def row(step, attempt, spoilt=""):
    speed = {"train/tokens_per_second": 100.0}
    return {"step": step, "attempt": attempt, "loss_hex": f"{step}{spoilt}", "parameter_hash": f"h{step}", **speed}


def test_the_summary_pairs_rows_and_repeated_steps(runs):
    summary = tool("quickstart_summary").summarise(runs, 12.0)
    assert summary["gain"]["nats"] == pytest.approx(0.8 / 3)
    assert summary["gain"]["standard_error"] == pytest.approx(0.12018504251546631)
    assert [step for step, _, _ in summary["first_process"]] == list(range(11, 41))
    assert summary["resumed_bitwise"] is True


def test_one_other_loss_is_noticed(runs):
    file = runs / "distilled" / "metrics.jsonl"
    file.write_text(file.read_text() + json.dumps(row(30, 2, spoilt="!")) + "\n")
    assert tool("quickstart_summary").summarise(runs, 12.0)["resumed_bitwise"] is False


def test_too_few_repeated_steps_prove_nothing(runs):
    lines = (runs / "distilled" / "metrics.jsonl").read_text().splitlines()[:20]
    lines += [json.dumps(row(step, 2)) for step in range(11, 21)]
    (runs / "distilled" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert tool("quickstart_summary").summarise(runs, 12.0)["resumed_bitwise"] is False


def test_a_record_keeps_the_evidence_and_a_table_shows_it(runs, tmp_path, monkeypatch):
    results = tool("results")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    for name in ("config.resolved.yaml", "journal.jsonl", "environment.json", "command.txt"):
        (runs / "distilled" / name).write_text("{}\n")
    (runs / "summary.json").write_text(json.dumps(tool("quickstart_summary").summarise(runs, 12.0)))
    kept = results.record(runs / "distilled", "quickstart-seed9/distilled")
    assert not (kept / "evaluation" / "heldout_rows.json").exists()
    assert "| seed9 | distilled | 5 | 10.00 | 50.0% | 100 | 0.2667 ± 0.1202 |" in results.tables(tmp_path / "results")
    shutil.rmtree(tmp_path / "results")
    assert results.tables(tmp_path / "results") == "Nothing measured yet."
