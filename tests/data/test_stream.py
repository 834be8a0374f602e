"""The stream: equal global batches in every world, any step at any time, errors in the right place."""

from __future__ import annotations

import json
import shutil
import threading

import numpy as np
import pytest
import torch

from megadistill.core.dist import World
from megadistill.core.errors import UserError
from megadistill.core.types import IGNORE, Batch
from megadistill.data import stream as module
from megadistill.data.prepare import prepare
from megadistill.data.stream import HeldOut, Stream


def rows_of(batches):
    """The rows of micro-batches as comparable tuples (id, inputs, labels, segments)."""
    return [
        (row, *(tuple(getattr(batch, name)[i].tolist()) for name in ("ids", "labels", "segments")))
        for batch in batches
        for i, row in enumerate(batch.rows.tolist())
    ]


def global_batch(config, step, size, micro, seed=0, **options):
    """Step's rows over all ranks, in the order of the global batch."""
    streams = [Stream(config, World(rank, size), 24, micro, seed, **options) for rank in range(size)]
    micro_batches = [stream.take(step) for stream in streams]
    return [row for turn in zip(*micro_batches, strict=True) for row in rows_of(turn)]


@pytest.mark.parametrize(("size", "micro"), [(1, 24), (1, 4), (2, 12), (2, 3), (4, 6), (8, 1)])
def test_every_world_trains_on_the_same_rows_with_the_same_masks_in_the_same_order(prepared, size, micro):
    for step in (0, 1, 500):
        assert global_batch(prepared, step, size, micro) == global_batch(prepared, step, 1, 8)


def test_batches_are_what_batch_says(prepared):
    batch = Stream(prepared, World(), 24, 24, 0).take(0)[0]
    assert batch.ids.shape == batch.mask.shape == batch.segments.shape == batch.labels.shape == (24, 32)
    dtypes = [batch.ids.dtype, batch.mask.dtype, batch.segments.dtype, batch.labels.dtype, batch.rows.dtype]
    assert dtypes == [torch.int64, torch.bool, torch.int64, torch.int64, torch.int64]
    assert torch.equal(batch.mask, batch.segments > 0)
    assert ((batch.labels != IGNORE) <= batch.mask).all()
    assert 0 < batch.counts()[1] < batch.counts()[0]


def test_every_row_comes_once_per_epoch_with_new_masks_in_the_next(prepared):
    stream = Stream(prepared, World(), 24, 24, 0)
    epoch = stream.rows_per_epoch
    steps = 2 * epoch // 24 + 1
    seen = [row for step in range(steps) for row in rows_of(stream.take(step))][: 2 * epoch]
    first, second = seen[:epoch], seen[epoch:]
    assert sorted(row[0] for row in first) == sorted(row[0] for row in second) == list(range(epoch))
    inputs = {row[0]: row[1] for row in first}
    assert sum(inputs[row[0]] == row[1] for row in second) < 0.05 * epoch


def test_take_depends_on_the_step_alone(prepared):
    stream = Stream(prepared, World(1, 2), 24, 6, 3)
    later = rows_of(stream.take(9))
    stream.take(2)
    assert rows_of(stream.take(9)) == later == rows_of(Stream(prepared, World(1, 2), 24, 6, 3).take(9))


def test_skipping_a_window_moves_the_later_steps_up(prepared):
    plain = Stream(prepared, World(), 24, 24, 0)
    skipping = Stream(prepared, World(), 24, 24, 0, skips=[plain.window(3, 5)])
    for step, moved in ((2, 2), (3, 5), (10, 12)):
        assert rows_of(skipping.take(step)) == rows_of(plain.take(moved))
    both = Stream(prepared, World(), 24, 24, 0, skips=[plain.window(3, 5), skipping.window(4, 5)])
    assert [rows_of(both.take(s)) for s in (3, 4)] == [rows_of(plain.take(s)) for s in (5, 7)]


def test_windows_may_be_skipped_later(prepared):
    plain, stream = Stream(prepared, World(), 24, 24, 0), Stream(prepared, World(), 24, 24, 0)
    stream.take(4)
    stream.leave_out([plain.window(3, 5)])
    assert rows_of(stream.take(4)) == rows_of(plain.take(6))


@pytest.mark.parametrize(("size", "micro"), [(1, 8), (2, 4), (4, 2)])
def test_a_batch_that_grows_is_the_same_for_every_world(prepared, size, micro):
    """24 rows a step, from the fourth on 48: every row follows the one before."""
    steps = [row for step in range(6) for row in global_batch(prepared, step, size, micro, sizes=[(3, 48)])]
    assert steps == [row for step in range(9) for row in global_batch(prepared, step, 1, 24)]


def test_prefetching_yields_what_take_does_and_ends_its_thread(prepared):
    stream = Stream(prepared, World(), 24, 12, 0)
    assert [rows_of(b) for b in stream.prefetching(3, 8)] == [rows_of(stream.take(s)) for s in range(3, 8)]
    ahead = stream.prefetching(0, 10**9)
    next(ahead)
    ahead.close()
    assert not any(thread.name == "data" for thread in threading.enumerate())


def test_errors_of_the_prefetching_thread_arrive_at_their_step(prepared, monkeypatch):
    stream = Stream(prepared, World(), 24, 12, 0)
    take = stream.take

    def failing(step):
        if step == 2:
            raise UserError("shard is damaged")
        return take(step)

    monkeypatch.setattr(stream, "take", failing)
    batches = stream.prefetching(0, 5)
    next(batches), next(batches)
    with pytest.raises(UserError, match="damaged"):
        next(batches)
    assert not any(thread.name == "data" for thread in threading.enumerate())


def test_weights_decide_the_mix(prepared, changed):
    weighted = [c.model_dump() | {"weight": w} for c, w in zip(prepared.corpora, (1, 3), strict=True)]
    stream = Stream(changed(prepared, corpora=weighted), World(), 24, 24, 0)
    second = [row >= stream.part.starts[1] for step in range(4) for row in stream.take(step)[0].rows.tolist()]
    assert sum(second) == 72


def test_the_fingerprint_changes_with_what_the_stream_yields(prepared, changed):
    def fingerprint(config=prepared, seed=0, world=World(), micro=24):  # noqa: B008
        return Stream(config, world, 24, micro, seed).fingerprint

    base = fingerprint()
    assert base == fingerprint(world=World(1, 2), micro=4)
    others = [
        fingerprint(seed=1),
        fingerprint(changed(prepared, targets={"kind": "mlm", "probability": 0.3})),
        fingerprint(changed(prepared, targets={"kind": "clm"})),
        fingerprint(changed(prepared, corpora=[prepared.corpora[0].model_dump()])),
    ]
    assert len({base, *others}) == 5


def test_smoothed_masking_reads_the_counts_of_the_corpora(prepared, changed):
    smooth = Stream(changed(prepared, targets={"kind": "mlm", "smoothing": 0.7}), World(), 24, 24, 0)
    assert smooth.part.vocabulary.counts.sum() > 0
    assert (smooth.take(0)[0].labels != IGNORE).any()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_held_out_batches_are_fixed_and_equally_many_on_every_rank(prepared, size):
    ranks = [list(HeldOut(prepared).batches(5, 0, World(rank, size), 32)) for rank in range(size)]
    shapes = {tuple(batch.ids.shape[0] for batch in batches) for batches in ranks}
    assert len(shapes) == 1
    rows = [row for batches in ranks for row in rows_of(batches)]
    assert len({row[0] for row in rows}) == len(rows) == 32 // size * size
    alone = rows_of(HeldOut(prepared).batches(7, 0, World(), 32))
    assert set(rows) <= set(alone)


def test_held_out_rows_are_opened_once_for_many_evaluations(prepared, monkeypatch):
    expected = rows_of(HeldOut(prepared).batches(5, 0, World(1, 2), 32))
    held_out = HeldOut(prepared)
    for name in ("load_tokenizer", "checked_index", "Shards", "_token_counts"):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("opened again"))
    for _ in range(2):
        assert rows_of(held_out.batches(5, 0, World(1, 2), 32)) == expected


def test_too_few_held_out_rows_are_told_before_the_first_batch(prepared):
    with pytest.raises(UserError, match="held-out row"):
        HeldOut(prepared).batches(5, 0, World(0, 10**6))


def test_held_out_text_is_not_in_training(prepared):
    held = rows_of(HeldOut(prepared).batches(64, 0, World()))
    assert len(held) > 20
    stream = Stream(prepared, World(), 24, 24, 0)
    train = rows_of(b for s in range(stream.rows_per_epoch // 24 + 1) for b in stream.take(s))

    def runs(rows):  # eight words in a row tell documents of random words apart
        clean = [[i if t == IGNORE else t for i, t in zip(row[1], row[2], strict=True)] for row in rows]
        return {run for ids in clean for i in range(24) if min(run := tuple(ids[i : i + 8])) >= 5}

    assert not runs(held) & runs(train)


def test_what_was_prepared_otherwise_or_not_at_all_is_refused(prepared, changed, tmp_path):
    def stream(**values):
        return Stream(changed(prepared, **values), World(), 24, 24, 0)

    with pytest.raises(UserError, match="megadistill prepare"):
        stream(dir=tmp_path / "nothing")
    with pytest.raises(UserError, match="rows of 32 tokens"):
        stream(sequence_length=64)
    words = (prepared_vocabulary(prepared)).split()
    (tmp_path / "vocab.txt").write_text("\n".join([*words, "extra"]))
    with pytest.raises(
        UserError, match=r"another tokenizer than(.|\n)*fingerprint is \w{12}, not \w{12}(.|\n)*megadistill prepare"
    ):
        stream(tokenizer=str(tmp_path))
    shutil.copytree(prepared.dir, tmp_path / "shards")
    tar = next((tmp_path / "shards" / "two" / "train").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{tar.name} is damaged"):
        stream(dir=tmp_path / "shards")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"packing": "split"}, r'data\.packing was "concat", and is "split"'),
        ({"held_out": {"fraction": 0.5}}, r"data\.held_out\.fraction was 0\.1, and is 0\.5"),
        ({"held_out": {"fraction": 0.1, "max_rows": 3}}, r"data\.held_out\.max_rows was null, and is 3"),
        ({"near_duplicates": {}}, r"data\.near_duplicates was null, and is \{.*0\.8"),
        ({"decontaminate": {"files": ["nowhere.txt"]}}, r'data\.decontaminate was null, and is \{"words": 13\}'),
    ],
)
def test_rows_of_other_settings_are_refused_with_what_differs(prepared, changed, change, told):
    for part in (lambda config: Stream(config, World(), 24, 24, 0), HeldOut):
        with pytest.raises(UserError, match=f"was prepared otherwise(.|\n)*{told}(.|\n)*megadistill prepare FILE"):
            part(changed(prepared, **change))


def test_settings_of_a_corpus_are_compared_but_neither_its_place_nor_its_mixing(prepared, changed, tmp_path):
    def fingerprint(**values):
        corpora = [corpus.model_dump() | values for corpus in prepared.corpora]
        return Stream(changed(prepared, corpora=corpora), World(), 24, 24, 0).fingerprint

    with pytest.raises(UserError, match=r"data\.corpora \(one\)\.max_documents was null, and is 5"):
        fingerprint(max_documents=5)
    with pytest.raises(UserError, match=r'data\.corpora \(one\)\.document was "line", and is "file"'):
        fingerprint(document="file")
    assert fingerprint(files=["moved/*.txt"]) == Stream(prepared, World(), 24, 24, 0).fingerprint
    fingerprint(weight=2)
    against = {"words": 5, "files": [prepared.corpora[0].files[0]]}
    cleaned = changed(prepared, dir=tmp_path, corpora=prepared.corpora[1:], decontaminate=against)
    prepare(cleaned, lambda line: None, workers=1)
    Stream(changed(cleaned, decontaminate=against | {"files": ["moved.txt"]}), World(), 24, 24, 0)
    with pytest.raises(UserError, match=r"data\.decontaminate\.words was 5, and is 6"):
        Stream(changed(cleaned, decontaminate=against | {"words": 6}), World(), 24, 24, 0)


def test_shards_that_do_not_say_how_they_were_made_are_opened(prepared, changed, tmp_path):
    shutil.copytree(prepared.dir, tmp_path / "shards")
    for path in (tmp_path / "shards").glob("*/stats.json"):
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "made_with"}))
    old = changed(prepared, dir=tmp_path / "shards")
    assert prepare(old, lambda line: None).fresh == []
    Stream(changed(old, packing="split"), World(), 24, 24, 0)


def prepared_vocabulary(config) -> str:
    from pathlib import Path

    return (Path(config.tokenizer) / "vocab.txt").read_text()


def test_batches_split_without_copies_of_other_ranks(prepared):
    micro_batches = Stream(prepared, World(1, 2), 24, 3, 0).take(0)
    assert len(micro_batches) == 4
    assert all(isinstance(batch, Batch) and batch.ids.shape == (3, 32) for batch in micro_batches)


@pytest.mark.parametrize("wrong", [-1, 65])
def test_an_id_that_the_tokenizer_does_not_have_is_named_where_batches_are_made(prepared, monkeypatch, wrong):
    stream = Stream(prepared, World(), 4, 4, seed=0)
    for shards in stream.part.shards:
        tokens, segments = shards.rows(np.arange(4))
        tokens = tokens.astype(np.int64)
        tokens[0, 3] = wrong
        monkeypatch.setattr(shards, "rows", lambda rows, t=tokens, s=segments: (t[: len(rows)], s[: len(rows)]))
    with pytest.raises(UserError, match=f"token id {wrong}, and the tokenizer has 65 entries"):
        stream.take(0)
