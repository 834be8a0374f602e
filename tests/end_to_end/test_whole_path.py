"""prepare, train, evaluate, export, report: a masked and a causal pair, in one process each."""

import json

import pytest
import torch

from megadistill.testing import processes, workspace


def megadistill(*arguments, code=0):
    done = processes.megadistill(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module", params=["masked", "causal"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    config = workspace.make(folder, causal=request.param == "causal")
    megadistill("prepare", config)
    megadistill("train", config, "train.steps=8", "log.gradient_shares_every_steps=5")
    return folder / "runs" / "tiny"


def test_the_run_directory_tells_what_happened(run):
    journal = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert [event["event"] for event in journal] == ["start", "save", "save", "save", "end"]
    start = journal[0]
    assert "head_losses" in start["ops"]
    assert len(start["teacher"]["sha256"]) == 64
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = next(row for row in rows if row["step"] == 8 and "train/loss" in row)
    parts = sum(w * last[f"train/objective/{n}"] for n, w in (("soft_ce", 5), ("hard_ce", 2), ("cosine", 1)))
    assert last["train/loss"] == pytest.approx(parts, rel=1e-12)
    assert last["teacher/loss"] > 0
    fifth = next(row for row in rows if row["step"] == 5 and "train/loss" in row)
    shares = [fifth[f"train/gradient_share/{n}"] for n in ("soft_ce", "hard_ce", "cosine")]
    assert min(shares) > 0
    assert sum(shares) == pytest.approx(1, rel=1e-6)
    assert 0 < last["train/data_wait"] < 1
    assert json.loads((run / "STATUS").read_text())["state"] == "done"


def test_the_loss_falls(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < losses[0]


def test_evaluate_agrees_with_a_plain_transformers_forward(run, tmp_path):
    scores = json.loads(megadistill("evaluate", run))["heldout"]
    assert scores == json.loads((run / "evaluation" / "heldout.json").read_text())
    assert 0 <= scores["agreement_top1"] <= 1
    exported = megadistill("export", run, "--to", "hf", "--output", tmp_path / "student")
    assert str(tmp_path / "student") in exported

    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    from megadistill.core.dist import World
    from megadistill.data.stream import HeldOut
    from megadistill.run.config import load

    causal = "causal" in str(run)
    auto = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    student = auto.from_pretrained(tmp_path / "student").eval()
    config = load(run / "config.resolved.yaml")
    nll, targets = 0.0, 0
    with torch.no_grad():
        for batch in HeldOut(config.data).batches(16, config.seed, World()):
            logits = student(input_ids=batch.ids, attention_mask=batch.mask.long()).logits.double()
            nll += torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum")
            targets += int((batch.labels != -100).sum())
    assert scores["num_targets"] == targets
    assert scores["loss"] == pytest.approx(float(nll) / targets, rel=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    ids = tokenizer("the import statement").input_ids
    assert max(ids) < workspace.VOCABULARY
    assert (ids[0], ids[-1]) == ((2, 3) if not causal else (ids[0], ids[-1]))


def test_wikitext_is_scored_and_a_missing_folder_is_told(run, tmp_path):
    (tmp_path / "test.txt").write_text("\n\n".join(workspace.text()[600:640]), encoding="utf-8")
    scores = json.loads(megadistill("evaluate", run, "--tasks", "wikitext", "--wikitext", tmp_path))["wikitext"]
    assert scores["loss"] > 0
    assert scores["teacher_loss"] > 0
    assert ("word_perplexity" in scores) == ("causal" in str(run))
    assert "no WikiText test file" in megadistill(
        "evaluate", run, "--tasks", "wikitext", "--wikitext", tmp_path / "nothing", code=2
    )


def test_another_config_is_refused_and_nothing_is_lost(run):
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    config = run.parent.parent / "run.yaml"
    told = megadistill(
        "train", config, "train.steps=8", "log.gradient_shares_every_steps=5", "objectives.0.temperature=3", code=2
    )
    assert "objectives.0.temperature: 3.0 here / 2.0 in the run" in told
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before
