"""Augmentation: do variants arise as published, always the same ones, and who answers them?"""

import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from megadistill.core.errors import UserError
from megadistill.data.tokenization import load_tokenizer
from megadistill.objectives.hard_ce import HardCE
from megadistill.objectives.logits_mse import LogitsMSE
from megadistill.objectives.soft_ce import SoftCE
from megadistill.objectives.teacher_label import TeacherLabel
from megadistill.objectives.value_mse import ValueMSE
from megadistill.tasks.augment import kept
from megadistill.tasks.augment.tinybert import TinyBertAugment
from megadistill.tasks.encoding import Example, encode
from megadistill.tasks.glue import GlueTask
from megadistill.tasks.rows import TaskRows
from megadistill.tasks.text import TextTask
from megadistill.testing import task_files, tiny

CPU = torch.device("cpu")
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "tasks"


def sst2(files, **fields):
    given = {"folder": files / "glue", "tokenizer": str(files / "model"), "sequence_length": 16}
    return GlueTask(kind="glue", name="sst2", **given | fields)


def deviates(found, probability, number):
    """By how many standard deviations of a binomial count."""
    return abs(found - probability * number) / math.sqrt(number * probability * (1 - probability))


# ---------------------------------------------------------------------------------------------- TinyBERT


def test_candidates_are_what_the_model_predicts_there_and_what_is_near_by_its_vector(files, tinybert):
    from transformers import BertForMaskedLM

    text = "the film , unseen , was good"
    maker = tinybert(candidates=4).maker([(text, None)], CPU)
    (words,) = maker.words([text])
    assert [text[start:stop] for start, stop, _ in words] == ["the", "film", "unseen", "was", "good"]

    hf = BertForMaskedLM.from_pretrained(files / "model").eval()
    tokenizer = load_tokenizer(str(files / "model"))
    vocabulary = tokenizer.backend.get_vocab()
    ids = [tokenizer.special.cls, *tokenizer.encode(text), tokenizer.special.sep]
    ids[2] = tokenizer.special.mask  # film
    with torch.no_grad():
        logits = hf(input_ids=torch.tensor([ids])).logits[0, 2]
    whole = [word for word in vocabulary if word.isalpha()]
    best = sorted(whole, key=lambda word: -float(logits[vocabulary[word]]))[:4]
    assert sorted(words[1][2]) == sorted(best)

    lines = [line.split(" ") for line in (files / "vectors.txt").read_text().splitlines()]
    vectors = {word: np.array(values, dtype=float) for word, *values in lines}
    own = vectors.pop("unseen")
    cosine = {word: own @ other / np.linalg.norm(own) / np.linalg.norm(other) for word, other in vectors.items()}
    assert sorted(words[2][2]) == sorted(sorted(cosine, key=cosine.get)[-4:])


def test_words_are_replaced_as_often_as_published_and_by_all_candidates_alike(tinybert):
    config = tinybert(samples=4000)
    assert (config.probability, config.candidates, TinyBertAugment.model_fields["samples"].default) == (0.4, 15, 20)
    pair = ("the film was good", None)
    maker = config.maker([pair], CPU)
    (words,) = maker.words([pair[0]])
    counts = Counter()
    draw = random.Random(1)
    drawn = [maker.changed(pair[0], words, draw, counts).split(" ") for _ in range(4000)]
    assert counts["words"] == 16000
    assert deviates(counts["replaced"], 0.4, 16000) < 4
    found = Counter(text[1] for text in drawn)  # its own word may be among the candidates
    for word in set(words[1][2]) - {"film"}:
        assert deviates(found[word], 0.4 / 15, 4000) < 4
    assert set(found) == {*words[1][2], "film"}
    made = maker.of(pair, {pair[0]: words})
    assert len(set(made.variants)) == len(made.variants)
    assert pair not in made.variants
    assert made.counts["draws"] == len(made.variants) + made.counts["duplicates"] == 4000


def test_punctuation_and_what_has_no_vector_stay_and_so_do_stop_words_if_asked_to(tinybert):
    text = "the 2nd film, unheardof: good!"
    for stop_words, changed in ((True, {"the", "film", "good", "nd"}), (False, {"film", "good", "nd"})):
        maker = tinybert(probability=1.0, stop_words=stop_words).maker([(text, None)], CPU)
        (words,) = maker.words([text])
        assert {text[start:stop] for start, stop, candidates in words if candidates} == changed - {"nd"}
        variant = maker.changed(text, words, random.Random(0), Counter())
        assert ", unheardof: " in variant
        assert variant.startswith("the 2nd ") == (not stop_words)


def test_each_text_of_a_pair_is_changed_in_turn(tinybert):
    pair = ("the film was good", "the story was bad")
    made = tinybert(samples=30).maker([pair], CPU)([pair])[0]
    sides = {(first != pair[0], second != pair[1]) for first, second in made.variants}
    assert sides == {(True, False), (False, True)}


# ---------------------------------------------------------------------------------------------- Tang


def test_words_are_masked_and_replaced_and_texts_cut_as_often_as_published(tang):
    config = tang()
    assert (config.mask, config.replace, config.ngram, config.samples) == (0.1, 0.1, 0.25, 20)
    text = " ".join(task_files.PLAIN)  # 14 words
    maker = config.maker([(text, None)], CPU)
    words, draw, counts = maker.tagged(text), random.Random(2), Counter()
    lengths = Counter(len(maker.changed(text, words, draw, counts).split()) for _ in range(8000))
    for name, probability, number in (("masked", 0.1, 112000), ("replaced", 0.1, 112000), ("cut", 0.25, 8000)):
        assert deviates(counts[name], probability, number) < 4, name
    assert counts["words"] == 112000
    assert lengths.keys() == {1, 2, 3, 4, 5, 14}
    for length in range(1, 6):
        assert deviates(lengths[length], 0.05, 8000) < 4


def test_a_word_is_replaced_by_its_part_of_speech_as_often_as_its_words_occur(tang):
    texts = ["man sees film", "man goes home", "man was good", "man sees city"]
    maker = tang(mask=0.0, replace=1.0, ngram=0.0).maker([(text, None) for text in texts], CPU)
    text, draw = "man sees dull", random.Random(3)
    found = [Counter(), Counter(), Counter()]
    for _ in range(4000):
        variant = maker.changed(text, maker.tagged(text), draw, Counter()).split()
        for counter, word in zip(found, variant, strict=True):
            counter[word] += 1
    assert found[1].keys() == {"sees", "goes", "was"}  # verbs: 2, 1, 1
    assert deviates(found[1]["sees"], 0.5, 4000) < 4
    assert found[0].keys() == {"man", "film", "home", "city"}  # nouns: 4, 1, 1, 1
    assert deviates(found[0]["man"], 4 / 7, 4000) < 4
    assert found[2].keys() == {"good"}


def test_ngrams_keep_their_words_in_order_and_the_text_between_them(tang):
    text = "  the film,was  'good'. "
    maker = tang(mask=0.0, replace=0.0, ngram=1.0).maker([(text, None)], CPU)
    words, draw = maker.tagged(text), random.Random(4)
    drawn = {maker.changed(text, words, draw, Counter()) for _ in range(500)}
    assert len(words) == 7
    assert "film,was" in drawn
    assert "the film,was  'good" in drawn
    assert all(variant in text for variant in drawn)
    whole = tang(mask=0.0, replace=0.0, ngram=0.0).maker([(text, None)], CPU)
    assert whole.changed(text, words, draw, Counter()) == text


def test_of_pairs_the_first_the_second_and_both_are_changed_in_turn(tang):
    pair = ("the film was good", "the story was bad")
    made = tang(mask=1.0, replace=0.0, ngram=0.0, samples=3).maker([pair], CPU)([pair])[0]
    masked = "[MASK] [MASK] [MASK] [MASK]"
    assert made.variants == [(masked, pair[1]), (pair[0], masked), (masked, masked)]


def test_a_masked_word_is_the_tokenizers_mask_in_variants_alone(files):
    tokenizer = load_tokenizer(str(files / "model"))
    examples = [
        Example("f:1", "a [MASK] film", None, 1.0),
        Example("f:1", "a [MASK] film", "[MASK]", math.nan, made=True),
    ]
    encoded = encode(examples, "label", 2, tokenizer, 32)
    plain, made = (encoded.tokens[encoded.starts[i] : encoded.starts[i + 1]].tolist() for i in range(2))
    mask, sep = tokenizer.special.mask, tokenizer.special.sep
    a, film = tokenizer.encode("a")[0], tokenizer.encode("film")[0]
    assert mask not in plain
    assert made == [tokenizer.special.cls, a, mask, film, sep, mask, sep]
    assert encoded.counts.tolist() == [0, 1]


# ---------------------------------------------------------------------------------------------- what is kept


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("method", ["tinybert", "tang"])
def test_order_and_number_of_processes_change_no_byte(method, files, request, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "PART", 16)
    make = request.getfixturevalue(method)
    examples = [*sst2(files).examples("train"), Example("f:1", "the film", "a man sees", 0.0)]
    whole = kept.make(make(samples=3), examples)
    shuffled = random.Random(5).sample(examples, len(examples)) + examples[:3]
    other = make(samples=3, cache=tmp_path / "other")
    for share in ((1, 2), (0, 2)):
        apart = kept.make(other, shuffled, share)
        assert (apart / kept.STATS).exists() == (share == (0, 2))
    assert apart.name == whole.name
    assert content(apart) == content(whole)
    assert len(list(whole.glob("part-*.jsonl"))) == 5
    (whole / "part-00001.jsonl").unlink()  # as if killed: what is there is not made again
    before = {file: file.stat().st_mtime_ns for file in whole.iterdir()}
    kept.make(make(samples=3), examples)
    assert content(apart) == content(whole)
    assert all(file.stat().st_mtime_ns == then for file, then in before.items())
    assert kept.make(make(samples=3, seed=1), examples) != whole
    assert kept.make(make(samples=2), examples) != whole


def test_the_files_that_variants_come_from_are_known_by_content(files, tinybert, tmp_path):
    examples = sst2(files).examples("train")[:4]
    first = kept.make(tinybert(samples=2), examples)
    moved = tmp_path / "moved.txt"
    moved.write_bytes((files / "vectors.txt").read_bytes())
    assert kept.make(tinybert(samples=2, vectors=moved), examples) == first
    moved.write_text(moved.read_text().replace("0.1", "0.2"))
    assert kept.make(tinybert(samples=2, vectors=moved), examples) != first


def test_a_report_says_what_was_made(files, tang):
    examples = sst2(files).examples("train")
    found = kept.variants(tang(), examples)
    stats = json.loads((kept.make(tang(), examples) / kept.STATS).read_text())
    different = len({one.first for one in examples})
    assert stats["examples"] == different
    assert stats["draws"] == 20 * different
    assert stats["produced"] == stats["draws"] - stats["duplicates"] == len(found)
    assert stats["masked_share"] == pytest.approx(0.1, abs=0.02)
    assert len(stats["samples"]) == 8
    assert {one.made for one in found} == {True}
    assert all(math.isnan(one.answer) for one in found)


def test_a_damaged_part_is_named(files, tang):
    examples = sst2(files).examples("train")
    folder = kept.make(tang(), examples)
    part = folder / "part-00000.jsonl"
    for damaged in (part.read_text()[:-40], "[]\n" * 64):
        part.write_text(damaged)
        with pytest.raises(UserError, match=r"part-00000.jsonl is not as it was written(.|\n)*remove it"):
            kept.variants(tang(), examples)


def test_rows_are_encoded_once_for_all_that_ask_for_the_same(files, tang, tmp_path, monkeypatch):
    def rows(**fields):
        return sst2(files, **{"augment": tang(samples=4), **fields}).open("train").encoded

    made = rows()
    folder = kept.make(tang(samples=4), sst2(files).examples("train"))
    (file,) = folder.glob("rows-*")
    assert file.stat().st_mode == (folder / kept.STATS).stat().st_mode
    examples = sst2(files).examples("train")
    every = [*examples, *kept.variants(tang(samples=4), examples)]
    wanted = encode(every, "label", 2, load_tokenizer(str(files / "model")), 16)
    with monkeypatch.context() as patched:
        patched.setattr("megadistill.tasks.augment.rows.encode", None)
        for found in (made, rows()):
            for name in ("tokens", "segments", "starts", "answers", "counts"):
                array, other = getattr(found, name), getattr(wanted, name)
                assert array.dtype == other.dtype
                np.testing.assert_array_equal(array, other)
            assert (found.kind, found.padding, found.truncated, found.choices) == ("label", 0, wanted.truncated, 1)
    assert rows(sequence_length=8).lengths.max() == 8 < made.lengths.max()
    assert len(rows(max_train_examples=8)) < len(made)
    assert not np.isnan(rows(augment=tang(samples=4, answers="original")).answers).any()
    assert len(list(folder.parent.glob("*/rows-*"))) == 4
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match=rf"{file.name} is not as it was written(.|\n)*remove it"):
        rows()


def test_rows_that_cannot_be_kept_are_encoded_all_the_same(files, tang, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "not yours")

    monkeypatch.setattr("megadistill.tasks.augment.rows._write", refuse)
    opened = sst2(files, augment=tang(samples=4)).open("train")
    assert len(opened.encoded) > 200
    assert not list(kept.make(tang(samples=4), sst2(files).examples("train")).glob("rows-*"))


# ---------------------------------------------------------------------------------------------- who answers


def augmented_rows(task):
    opened = task.open("train")
    return TaskRows(opened.encoded, task.sequence_length)


def test_variants_come_behind_the_examples_and_only_the_teacher_answers_them(files, tang):
    rows = augmented_rows(sst2(files, augment=tang(samples=4)))
    assert len(rows.encoded) > 200
    assert rows.counts.tolist() == [32, 32]
    chosen = np.array([0, 100, 1, 200])
    batch, plain = rows.take(chosen), rows.take(chosen[[0, 2]])
    assert batch.unanswered.tolist() == [False, True, False, True]
    assert plain.unanswered is None
    assert batch.counts().tolist()[1:] == [2, 4, 4]
    assert plain.counts().tolist()[1:] == [2, 2, 2]
    assert rows.answered(40).unanswered is None

    sizes = {"vocab_size": 128, "max_position_embeddings": 32}
    head = sst2(files).head
    student, teacher = (tiny.task_model("bert", head, seed=seed, **sizes) for seed in (0, 1))

    def term(objective, batch):
        loss = objective.build(student.dims, teacher.dims)
        ours, theirs = (model.signals(batch, frozenset()) for model in (student, teacher))
        return loss(ours, theirs, batch)

    hard = term(HardCE(kind="hard_ce"), batch)
    assert hard.count == "targets"
    torch.testing.assert_close(hard.sum, term(HardCE(kind="hard_ce"), plain).sum)
    every = TaskRows(rows.encoded, rows.sequence_length).take(chosen)
    for soft in (
        SoftCE(kind="soft_ce", scope="targets"),
        LogitsMSE(kind="logits_mse", scope="targets"),
        TeacherLabel(kind="teacher_label", scope="targets"),
    ):
        whole = term(soft, every)
        assert whole.count == "asked"
        alone = sum(term(soft, rows.take(chosen[[i]])).sum for i in range(4))
        torch.testing.assert_close(whole.sum, alone)
        assert not torch.allclose(whole.sum, term(soft, plain).sum)


def test_a_mixture_of_hard_and_soft_takes_each_over_its_own_rows(files, tang):
    from megadistill.objectives.step import DistillStep

    rows = augmented_rows(sst2(files, augment=tang(samples=4)))
    batch = rows.take(np.array([0, 100, 1, 200]))
    sizes = {"vocab_size": 128, "max_position_embeddings": 32}
    student, teacher = (tiny.task_model("bert", sst2(files).head, seed=seed, **sizes) for seed in (0, 1))
    objectives = [HardCE(kind="hard_ce"), SoftCE(kind="soft_ce", scope="targets", temperature=1.0)]
    step = DistillStep(student, objectives, [o.build(student.dims, teacher.dims) for o in objectives])
    loss, sums = step(batch, teacher.signals(batch, frozenset()), (1 / batch.counts()).float())
    with torch.no_grad():
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
        inputs["token_type_ids"] = (batch.segments - 1).clamp(min=0)
        ours, theirs = (model.hf(**inputs).logits.log_softmax(-1) for model in (student, teacher))
    hard = -ours[[0, 2], batch.labels[[0, 2], 0]].sum()
    soft = (theirs.exp() * (theirs - ours)).sum()
    torch.testing.assert_close(sums, torch.stack([hard, soft]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loss, hard / 2 + soft / 4, atol=1e-5, rtol=1e-4)


def test_variants_of_ratings_have_none_or_their_originals(files, tang, tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\nthe film was good\t4.5\na man sees her\t1\n")
    given = {"train": [str(tmp_path / "a.tsv")], "dev": [str(tmp_path / "a.tsv")], "tokenizer": str(files / "model")}

    def rows(answers):
        task = TextTask(kind="text", regression=True, **given, augment=tang(samples=3, answers=answers))
        return augmented_rows(task).take(np.arange(3))

    head = TextTask(kind="text", regression=True, **given).head
    student = tiny.task_model("bert", head, vocab_size=128, max_position_embeddings=32)
    for answers, ratings in (("teacher", [4.5, 1.0]), ("original", [4.5, 1.0, 4.5])):
        batch = rows(answers)
        term = ValueMSE(kind="value_mse").build(student.dims, None)(student.signals(batch, frozenset()), None, batch)
        with torch.no_grad():
            given_out = student.hf(input_ids=batch.ids, attention_mask=batch.mask.long()).logits[:, 0]
        wanted = (given_out[: len(ratings)] - torch.tensor(ratings)).square().sum()
        torch.testing.assert_close(term.sum, wanted)
        assert batch.counts()[1] == len(ratings)


# ---------------------------------------------------------------------------------------------- bad input
