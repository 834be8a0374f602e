"""Answers that were made once are found by content, are what the teacher said, and are refused when they are not."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from megadistill.core.dist import World
from megadistill.core.errors import UserError
from megadistill.core.types import Needs
from megadistill.data.prepare import prepare
from megadistill.data.stream import Stream
from megadistill.models.signals import LanguageModel
from megadistill.objectives.mixture import ask_heads
from megadistill.objectives.soft_ce import SoftCE
from megadistill.run.build import build
from megadistill.run.config import check, load
from megadistill.teachers import asking
from megadistill.teachers.answers import Keep, chosen, read_back, record
from megadistill.teachers.cached import CachedTeacher
from megadistill.testing import tiny, workspace
from megadistill.testing.heads import distance
from megadistill.testing.kept_answers import cached, spoil

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def answered(causal):
    """All 300 entries of every distribution at T = 2, and the config."""
    config = load(causal / "run.yaml")
    teacher = cached(causal, keep={"entries": workspace.VOCABULARY})
    said = []
    teacher.prepare(config.data, config.seed, said.append, (0, 1))
    assert "bytes each" in said[-1]
    return config, teacher


def soft(student, teacher, batch, temperature=2.0):
    objective = SoftCE(kind="soft_ce", temperature=temperature)
    loss = objective.build(student.dims, student.dims)
    ours = student.signals(batch, frozenset())
    return ask_heads([loss], torch.ones(1), ours, teacher.signals(batch, Needs(teacher=True)), batch, 1)[0]


def test_with_all_entries_kept_it_teaches_what_the_online_teacher_does(answered):
    config, teacher = answered
    student = tiny.language_model("gpt2", 1, seed=5, vocab_size=workspace.VOCABULARY, n_positions=workspace.LENGTH)
    batch = Stream(config.data, World(), 16, 4, seed=3).take(0)[0]
    gradients = []
    for source in (teacher.build(CPU), teacher.of.build(CPU)):
        loss = soft(student, source, batch)
        gradients.append([loss.detach(), *torch.autograd.grad(loss, list(student.parameters()))])
    for ours, theirs in zip(*gradients, strict=True):
        assert distance(ours, theirs) < 1e-2


@pytest.mark.parametrize("world", [World(), World(1, 2)])
def test_every_row_is_found_after_a_new_seed_and_number_of_ranks(answered, world):
    config, teacher = answered
    source = teacher.build(CPU)
    for seed in (config.seed, 1234):
        stream = Stream(config.data, world, 16, 4, seed)
        for step in range(2 * stream.rows_per_epoch // 16):  # two epochs
            for batch in stream.take(step):
                source.signals(batch, Needs(teacher=True))


def test_masked_rows_are_found_where_their_masks_are_drawn_again(tmp_path):
    path = workspace.make(tmp_path)
    targets = "data.targets={kind: mlm, maskings: 2, seed: 7}"
    config = load(path, [targets, "data.corpora.0.max_documents=40"])
    prepare(config.data, lambda line: None)
    teacher = cached(tmp_path, keep={"kind": "sample", "entries": 5})
    teacher.prepare(config.data, 0, lambda line: None, (0, 1))
    source = teacher.build(CPU)
    stream = Stream(config.data, World(), 16, 4, seed=99)
    for step in range(3 * stream.rows_per_epoch // 16):
        source.signals(stream.take(step)[0], Needs(teacher=True))
    own = load(path, ["data.targets={kind: mlm, maskings: 2}", "data.corpora.0.max_documents=40"])
    with pytest.raises(UserError, match=r"4 of 4 rows are not in") as caught:
        source.signals(Stream(own.data, World(), 16, 4, seed=99).take(0)[0], Needs(teacher=True))
    assert "data.targets.seed" in caught.value.fix


def test_who_is_asked_about_pairs_is_told_which_text_is_which(tmp_path, monkeypatch):
    targets = "data.targets={kind: mlm, maskings: 1}"
    config = load(workspace.make(tmp_path), [targets, "data.packing=pairs", "data.corpora.0.max_documents=40"])
    prepare(config.data, lambda line: None)
    teacher, signals, typed = cached(tmp_path), LanguageModel.signals, set()
    monkeypatch.setattr(LanguageModel, "signals", lambda self, *args: typed.add(self.typed) or signals(self, *args))
    teacher.prepare(config.data, 0, lambda line: None, (0, 1))
    assert typed == {True}
    teacher.check(config.data)
    with pytest.raises(UserError, match="attention: 'pair' there, 'row' here"):
        teacher.check(config.data.model_copy(update={"packing": "split"}))


@pytest.mark.parametrize("drawn", ["clm", "mlm"])
def test_rows_that_are_given_up_as_damaged_have_an_answer(causal, tmp_path, drawn):
    data = load(causal / "run.yaml").data
    targets = "{kind: clm}" if drawn == "clm" else "{kind: mlm, maskings: 1}"
    options = [f"data.dir={tmp_path / 'prepared'}", f"data.targets={targets}", "data.read.damaged=quarantine"]
    shutil.copytree(data.dir, tmp_path / "prepared")
    data = load(causal / "run.yaml", options).data
    teacher = cached(causal, dir=str(tmp_path / "answers"))
    teacher.prepare(data, 0, lambda line: None, (0, 1))
    spoil(next((data.dir / "text" / "train").glob("*.tar")), at=5000)
    source, stream = teacher.build(CPU), Stream(data, World(), 16, 16, seed=0)
    alone = 0
    for step in range(stream.rows_per_epoch // 16):
        batch = stream.take(step)[0]
        alone += int((batch.mask.sum(1) == 1).sum())
        assert bool(source.signals(batch, Needs(teacher=True)).kept(batch.attended).log_probs.isfinite().all())
    assert alone > 0


# ------------------------------------------------------------------ what is kept


def distributions(rows, size, seed=0):
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)).mul(3).softmax(-1)


def index_of(keep, vocabulary):
    return type("Index", (), {"keep": keep, "vocabulary": vocabulary, "temperature": 2.0})()


@pytest.mark.parametrize("vocabulary", [300, 70_000])
def test_top_k_keeps_the_likeliest_with_their_probabilities(vocabulary):
    p, keep = distributions(6, vocabulary), Keep(entries=4)
    kept = read_back(chosen(p, keep, torch.zeros(6)), index_of(keep, vocabulary))
    top = p.topk(4, dim=-1)
    assert kept.ghost
    assert torch.equal(kept.ids, top.indices)
    torch.testing.assert_close(kept.log_probs.exp(), top.values, rtol=1e-2, atol=0)
    torch.testing.assert_close(1 - kept.log_probs.exp().sum(1), 1 - top.values.sum(1), rtol=1e-3, atol=1e-6)


def test_a_sample_is_right_in_the_mean():
    """Over all draws every entry gets its probability, and in each draw the rounded number of times."""
    p, keep, draws = distributions(1, 50), Keep(kind="sample", entries=8), 4000
    u = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    kept = read_back(chosen(p.expand(draws, -1), keep, u), index_of(keep, 50))
    assert not kept.ghost
    dense = torch.zeros(draws, 50).scatter_add_(1, kept.ids, kept.log_probs.exp())
    torch.testing.assert_close(dense.sum(1), torch.ones(draws))
    torch.testing.assert_close(dense.mean(0), p[0], rtol=0, atol=2e-3)
    assert bool(((dense - p).abs() < 1 / 8 + 1e-6).all())


def test_a_sample_that_keeps_the_likeliest_only_would_be_noticed():
    """The check above rejects a biased choice."""
    p = distributions(1, 50)
    top = p.topk(8, dim=-1)
    dense = torch.zeros(50).scatter_(0, top.indices[0], top.values[0] / top.values.sum())
    assert float((dense - p[0]).abs().max()) > 2e-3


@pytest.mark.parametrize(
    ("keep", "vocabulary"),
    [
        (Keep(entries=8), 30_522),
        (Keep(entries=8), 50_257),
        (Keep(kind="sample", entries=19), 50_257),
        (Keep(kind="sample", entries=13), 128_256),
    ],
)
def test_a_token_takes_at_most_forty_bytes(keep, vocabulary):
    assert record(keep, vocabulary).itemsize <= 39


# ------------------------------------------------------------------ refusals


@pytest.fixture
def copy(answered, tmp_path):
    """A config and a teacher whose answers and model may be spoilt."""
    config, teacher = answered
    for name in ("answers", "teacher"):
        shutil.copytree(teacher.dir.parent / name, tmp_path / name)
    return config, cached(tmp_path, keep=teacher.keep.model_dump())


def test_answers_of_other_weights_are_stale(copy):
    config, teacher = copy
    teacher.check(config.data)
    spoil(teacher.dir.parent / "teacher" / "model.safetensors")
    with pytest.raises(UserError, match="are not those that answered"):
        teacher.check(config.data)


@pytest.mark.parametrize(
    ("fields", "data", "message"),
    [
        ({"keep": {"entries": 3}}, {}, "keep:"),
        ({"temperature": 3.0}, {}, "temperature: 2.0 there, 3.0 here"),
        ({}, {"attention": "document"}, "attention: 'row' there, 'document' here"),
    ],
)
def test_answers_to_another_question_are_stale(copy, fields, data, message):
    config, teacher = copy
    other = cached(teacher.dir.parent, **{"keep": teacher.keep.model_dump(), **fields})
    with pytest.raises(UserError, match=message):
        other.check(config.data.model_copy(update=data))


def test_missing_and_cut_files_are_told(copy):
    _, teacher = copy
    block = teacher.dir / "000000.answers.npy"
    block.write_bytes(block.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"block 0 of .* missing or cut short"):
        teacher.build(CPU)
    block.unlink()
    with pytest.raises(UserError, match=r"block 0 of .* missing or cut short"):
        teacher.build(CPU)
    (teacher.dir / "index.json").unlink()
    with pytest.raises(UserError, match="no teacher's answers in"):
        teacher.build(CPU)


def test_a_flipped_bit_is_told_when_its_block_is_read(copy):
    config, teacher = copy
    spoil(teacher.dir / "000000.answers.npy")
    source = teacher.build(CPU)
    batch = Stream(config.data, World(), 16, 4, seed=0).take(0)[0]
    signals = source.signals(batch, Needs(teacher=True))
    with pytest.raises(UserError, match="is damaged"):
        signals.kept(batch.attended)


def test_no_handle_stays_open_for_a_block(causal, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "BLOCK_ROWS", 16)
    data = load(causal / "run.yaml").data
    teacher = cached(causal, dir=str(tmp_path / "answers"))
    teacher.prepare(data, 0, lambda line: None, (0, 1))
    source, stream = teacher.build(CPU), Stream(data, World(), 16, 16, seed=0)
    told = []
    for most in (10**6, 3):
        monkeypatch.setattr("megadistill.teachers.answers.MOST_MAPPED", most)
        for step in range(4):
            batch = stream.take(step)[0]
            told.append(source.signals(batch, Needs(teacher=True)).kept(batch.attended).log_probs)
    assert len(source.answers._sound) > 10
    assert not [path for path in Path("/proc/self/fd").iterdir() if str(tmp_path) in str(path.resolve())]
    for one, again in zip(told[:4], told[4:], strict=True):
        assert torch.equal(one, again)


def test_padding_has_no_answer(answered):
    _, teacher = answered
    source, padded = teacher.build(CPU), tiny.batch(3)
    rows = torch.arange(padded.mask.numel())
    with pytest.raises(AssertionError, match="attended"):
        source._kept(padded, rows, np.zeros(3, dtype=np.int64))
    assert len(source._kept(padded, padded.attended, np.zeros(3, dtype=np.int64)).ids) == len(padded.attended)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["objectives=[{kind: soft_ce, temperature: 3}]"], "of temperature 2, not 3"),
        (["objectives=[{kind: soft_ce, temperature: 2, temperature_ramp: {to_step: 5, start: 1, end: 2}}]"], "not 4"),
        (["objectives=[{kind: soft_ce, divergence: jsd}]"], "no the probability of every entry"),
        (["objectives=[{kind: soft_ce}, {kind: cosine}]"], "no hidden states; use teacher: online"),
        (["objectives=[{kind: attention_mse}]"], "no attention"),
        (["objectives=[{kind: kd_compat, original: maxtext, temperature: 2}]"], "kept no answers at padding"),
        (["objectives=[{kind: teacher_label}]"], "no logits"),
        (["objectives=[{kind: counterfactual}]"], "a second answer"),
        (["data.targets={kind: mlm}"], r"set data\.targets\.maskings"),
    ],
)
def test_what_it_cannot_give_is_told_when_the_config_is_read(causal, changes, message):
    fields = yaml.safe_load((causal / "run.yaml").read_text())
    fields["teacher"] = cached(causal).model_dump(mode="json")
    for form in ({"original": "hf_distil"}, {"original": "maxtext", "scope": "targets"}):
        fields["objectives"] = [{"kind": "kd_compat", "temperature": 2, **form}]
        check(fields, "file")
    fields["objectives"] = [{"kind": "soft_ce"}]
    check(fields, "file")
    path = causal / "changed.yaml"
    path.write_text(yaml.safe_dump(fields))
    with pytest.raises(UserError, match=message):
        load(path, changes)


def test_the_readmes_example_is_a_teacher():
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)]
    teachers = [CachedTeacher.model_validate(block["teacher"]) for block in blocks if "teacher" in block]
    assert [teacher.keep for teacher in teachers] == [Keep(entries=8)]


def test_a_run_is_built_on_it_with_a_student_of_the_teachers_layers(answered):
    config, teacher = answered
    fields = config.model_dump(mode="json") | {"teacher": teacher.model_dump(mode="json")}
    fields["objectives"] = [{"kind": "soft_ce"}, {"kind": "hard_ce"}]
    parts = build(check(fields, "file"), World(), CPU)
    assert parts.teacher.models == ()
    origin = teacher.origin()
    assert torch.equal(parts.student.hf.transformer.wte.weight, origin.hf.transformer.wte.weight)
    assert parts.teacher.identity()["sha256"] == parts.teacher.answers.index.fingerprint
    assert np.isfinite(parts.teacher.answers.index.bytes)
