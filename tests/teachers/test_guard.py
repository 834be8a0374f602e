"""Every fault that was planted in a teacher is told, and no sound teacher is refused."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from megadistill.core.errors import UserError
from megadistill.core.files import shipped
from megadistill.core.types import IGNORE, Batch
from megadistill.models.loading import load_pretrained
from megadistill.teachers.ensemble import EnsembleSource
from megadistill.teachers.guard import Guard, guard
from megadistill.teachers.online import OnlineSource, OnlineTeacher
from megadistill.testing import tiny, trained

SIZE = 4096


def counts(batch, size=SIZE):
    return np.bincount(batch.ids.flatten().numpy(), minlength=size)


def prove(source, batch=None, config=None, student=None, vocabulary=SIZE):
    batch = trained.batch(8) if batch is None else batch
    student = tiny.language_model("gpt2", 1) if student is None else student
    guard(config or Guard(), source, student, batch, vocabulary, counts(trained.batch(64), SIZE))


@pytest.fixture
def source():
    return OnlineSource("teacher", trained.teacher())


def test_the_shipped_teacher_may_teach(source):
    prove(source)
    prove(source, config=Guard(sha256=source.identity()["sha256"], max_loss=5.0))


# ------------------------------------------------------------------ planted faults


def dropout_left_on(source):
    source.model.hf.transformer.drop.train()
    source.model.hf.transformer.drop.p = 0.1


def train_mode(source):
    source.model.train()


def hidden_dropout(source):
    """A functional dropout that no mode switches off."""
    drop = source.model.hf.transformer.drop
    drop.forward = lambda x: torch.nn.functional.dropout(x, 0.1, training=True)


def zeroed_layer(source):
    for parameter in source.model.hf.transformer.h[2].parameters():
        parameter.zero_()


def random_head(source):
    torch.manual_seed(0)
    source.model.hf.lm_head.weight = torch.nn.Parameter(torch.randn(SIZE, 128) * 0.05, requires_grad=False)


def swapped_layers(source):
    layers = source.model.hf.transformer.h
    layers[0], layers[5] = layers[5], layers[0]


def zero_padded_vocabulary(source):
    """4,096 more entries of zeros, each with the logit 0."""
    head = source.model.hf.lm_head
    head.weight = torch.nn.Parameter(torch.cat([head.weight, torch.zeros_like(head.weight)]), requires_grad=False)
    shift = torch.zeros(2 * SIZE)
    shift[:SIZE] = -8.0
    head.bias = torch.nn.Parameter(shift, requires_grad=False)


def zero_padded_with(mass):
    """As many zeros again, with so much of the probability between them."""

    def faintly_zero_padded(source):
        zero_padded_vocabulary(source)
        head, batch = source.model.hf.lm_head, trained.batch(8)
        head.bias[:SIZE] = 20.0  # where it falls as the others rise
        log_p = source.model.hf(input_ids=batch.ids).logits[batch.labels != IGNORE].log_softmax(-1)
        head.bias[:SIZE] += float(log_p[:, SIZE:].exp().sum(-1).mean().log()) - math.log(mass)

    return faintly_zero_padded


def fp16_overflow(source):
    source.model.half()
    source.model.hf.transformer.ln_f.weight.mul_(6e4)


def weights_not_finite(source):
    source.model.hf.transformer.wpe.weight[3, 3] = torch.nan


def gradients_enabled(source):
    source.model.requires_grad_(True)


FAULTS = {
    dropout_left_on: "training mode",
    train_mode: "training mode",
    hidden_dropout: "differently each time",
    zeroed_layer: "all zeros",
    random_head: "guessing by word frequency",
    swapped_layers: "guessing by word frequency",
    zero_padded_vocabulary: "padded vocabulary",
    zero_padded_with(0.0015): r"0\.1\d% of its probability",
    fp16_overflow: "overflow in float16",
    weights_not_finite: "not finite",
    gradients_enabled: "would get gradients",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_told(fault, source):
    with torch.no_grad():
        fault(source)
    with pytest.raises(UserError, match=FAULTS[fault]):
        prove(source)


def shuffled(ids):
    return torch.randperm(SIZE, generator=torch.Generator().manual_seed(0))[ids]


def shifted_by_one(ids):
    return (ids + 1) % SIZE


def another_tokenizer_of_equal_size(ids):
    """The same number of ids, ordered by the alphabet instead of by frequency: as another training would order them."""
    return torch.arange(SIZE).flip(0)[ids]


@pytest.mark.parametrize("change", [shuffled, shifted_by_one, another_tokenizer_of_equal_size])
def test_ids_that_mean_other_words_to_it_are_told(change, source):
    right = trained.batch(8)
    ids = change(right.ids)
    labels = torch.where(right.labels == IGNORE, IGNORE, change(right.labels.clamp(min=0)))
    wrong = Batch(ids, right.mask, right.segments, labels, right.rows)
    frequencies = np.bincount(change(trained.batch(64).ids).flatten().numpy(), minlength=SIZE)
    with pytest.raises(UserError, match="guessing by word frequency"):
        guard(Guard(), source, tiny.language_model("gpt2", 1), wrong, SIZE, frequencies)


def test_a_teacher_that_is_the_student_is_told(source):
    with pytest.raises(UserError, match="it is the student"):
        prove(source, student=trained.teacher())


def test_stale_weights_are_told_by_their_hash(source):
    meant = Guard(sha256=source.identity()["sha256"])
    with torch.no_grad():
        source.model.hf.transformer.wte.weight[0, 0] += 1e-3
    with pytest.raises(UserError, match=r"teacher\.guard\.sha256 says"):
        prove(source, config=meant)


def test_a_truncated_shard_is_told_when_it_is_loaded(tmp_path):
    folder = tmp_path / "teacher"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((Path(shipped(trained.FOLDER)) / name).read_bytes())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4096])
    with pytest.raises(UserError, match="cannot load the model"):
        load_pretrained(str(folder))


def test_several_faults_are_told_at_once(source):
    train_mode(source)
    gradients_enabled(source)
    with pytest.raises(UserError) as caught:
        prove(source)
    assert "training mode" in str(caught.value)
    assert "would get gradients" in str(caught.value)


def test_a_bound_of_ones_own(source):
    with pytest.raises(UserError, match=r"more than teacher\.guard\.max_loss, 3"):
        prove(source, config=Guard(max_loss=3.0))
    with torch.no_grad():
        swapped_layers(source)
    prove(source, config=Guard(max_loss=None))


@pytest.mark.parametrize("first", range(5))
def test_neighbouring_layers_that_changed_places_are_told_by_hash_and_by_a_bound_near_its_loss(first, source):
    """The bound of word frequencies, 6.04 nats, tells only of the first two: they cost 3.4 nats, others 0.04 to 0.2."""
    bounds = [Guard(sha256=source.identity()["sha256"], max_loss=None), Guard(max_loss=4.26)]
    for config in bounds:
        prove(source, config=config)
    layers = source.model.hf.transformer.h
    layers[first], layers[first + 1] = layers[first + 1], layers[first]
    swapped = OnlineSource("swapped", source.model)
    for config in bounds if first else [Guard(), *bounds]:
        with pytest.raises(UserError, match="must not teach"):
            prove(swapped, config=config)


# ------------------------------------------------------------------ sound teachers


def test_padding_that_has_next_to_no_probability_is_no_fault(source):
    """Zeros beside larger logits, and zeros that a bias holds down."""
    with torch.no_grad():
        zero_padded_with(0.0005)(source)
        prove(source)
        source.model.hf.lm_head.bias[SIZE:] = -1e4
        prove(source)


def cycle(num_rows, seed):
    """Rows that count through 40 ids from a random start: learnt in a few steps, at chance for word frequencies."""
    starts = torch.randint(0, 40, (num_rows, 1), generator=torch.Generator().manual_seed(seed))
    return 10 + (starts + torch.arange(tiny.LENGTH)) % 40


def task(num_rows, seed, causal):
    ids = cycle(num_rows, seed)
    whole = torch.ones_like(ids)
    if causal:
        inputs, labels = ids, torch.cat([ids[:, 1:], torch.full((num_rows, 1), IGNORE)], dim=1)
    else:
        chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed + 1)) < 0.15
        inputs, labels = torch.where(chosen, 4, ids), torch.where(chosen, ids, IGNORE)
    return Batch(inputs, whole.bool(), whole, labels, torch.arange(num_rows))


def taught(name, **config):
    model = tiny.language_model(name, 1, seed=1, vocab_size=64, **config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60 if name in tiny.CAUSAL else 200):
        batch = task(16, step, name in tiny.CAUSAL)
        logits = model.hf(input_ids=batch.ids).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize(
    ("name", "dtype", "tied"),
    [
        ("bert", torch.float32, True),
        ("distilbert", torch.float32, True),
        ("roberta", torch.bfloat16, True),
        ("albert", torch.float32, True),
        ("modernbert", torch.float32, True),
        ("gpt2", torch.bfloat16, True),
        ("llama", torch.float32, False),
        ("qwen3", torch.bfloat16, False),
    ],
)
def test_no_sound_teacher_is_refused(name, dtype, tied):
    """Trained ones of every family, tied and untied, in fp32 and bf16; 3 of their 64 entries are padding."""
    model = taught(name, tie_word_embeddings=tied)
    batch = task(32, 1000, name in tiny.CAUSAL)
    frequencies = np.bincount(cycle(256, 7).flatten().numpy(), minlength=61)
    guard(Guard(), OnlineSource("sound", model.to(dtype)), tiny.language_model("bert", 1), batch, 61, frequencies)


def test_an_ensemble_of_sound_teachers_may_teach(source):
    guard(
        Guard(),
        EnsembleSource([source, OnlineSource("again", trained.teacher())], [0.5, 0.5]),
        tiny.language_model("gpt2", 1),
        trained.batch(4),
        SIZE,
        counts(trained.batch(64)),
    )


def test_a_teacher_has_a_guard_unless_it_says_otherwise():
    assert OnlineTeacher(kind="online", path="x").guard == Guard()
    assert OnlineTeacher(kind="online", path="x", guard=None).guard is None
