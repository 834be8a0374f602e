"""Tang's BiLSTM: its published size, what it reads, and where its words start."""

import pytest
import torch

from megadistill.core.errors import UserError
from megadistill.core.types import IGNORE, Batch
from megadistill.models.heads import TaskHead
from megadistill.models.loading import load_pretrained, save_pretrained
from megadistill.models.scoring import outputs
from megadistill.models.students.bilstm import BiLSTMStudent, starts
from megadistill.testing import tiny

HEAD = TaskHead("label", 2, ("no", "yes"))


def build(teacher=None, head=HEAD, **fields):
    small = {"hidden_size": 5, "inner_size": 6, "embedding_size": 4, "dropout": 0.0}
    return BiLSTMStudent(kind="bilstm", **{**small, **fields}).build(teacher, 30, False, 0, head=head)


def batch(rows, pair=False):
    """Padded rows of given ids; of a pair the second text begins where `|` stands."""
    texts = [[part for part in row if part != "|"] for row in rows]
    splits = [row.index("|") if "|" in row else len(row) for row in rows]
    width = max(map(len, texts)) + 1
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    mask = torch.arange(width) < torch.tensor([len(text) for text in texts]).unsqueeze(1)
    segments = mask.long() + (mask & (torch.arange(width) >= torch.tensor(splits).unsqueeze(1)))
    labels = torch.full_like(ids, IGNORE)
    labels[:, 0] = 0
    return Batch(ids, mask, segments, labels, torch.arange(len(rows)))


def answers(model, rows):
    given = batch(rows)
    return outputs(model.eval().signals(given, frozenset()), given)


def test_the_published_size():
    model = BiLSTMStudent(kind="bilstm").build(None, 100, False, 0, head=HEAD)
    sizes = {name: p.numel() for name, p in model.hf.named_parameters()}
    embeddings = sum(n for name, n in sizes.items() if name.startswith(("bilstm.words", "bilstm.fixed")))
    assert sum(sizes.values()) - embeddings == 963_002
    assert [name for name, p in model.hf.named_parameters() if not p.requires_grad] == ["bilstm.fixed.weight"]


def test_it_equals_torchs_own_bidirectional_lstm():
    model = build(multichannel=False)
    body, ids = model.hf.bilstm, torch.tensor([3, 7, 9, 11])
    reference = torch.nn.LSTM(4, 5, bidirectional=True, batch_first=True)
    for name, value in body.ahead.named_parameters():
        getattr(reference, name).data.copy_(value)
    for name, value in body.back.named_parameters():
        getattr(reference, f"{name}_reverse").data.copy_(value)
    states = reference(body.words(ids).unsqueeze(0))[0][0]
    row = torch.cat([states[-1, :5], states[0, 5:]])
    wanted = model.hf.classifier(torch.relu(model.hf.inner(row)))
    torch.testing.assert_close(answers(model, [ids.tolist(), [5, 6]])[0], wanted.detach())


@pytest.mark.parametrize("siamese", [False, True])
def test_padding_and_neighbours_change_nothing_and_order_does(siamese):
    model = build(siamese=siamese)
    model.check_head()
    rows = [[3, 7, "|", 9], [4, 5, "|", 6, 7, 8, 9, 2], [5, "|"]]
    together = answers(model, rows)
    for row, answer in zip(rows, together, strict=True):
        torch.testing.assert_close(answers(model, [row])[0], answer)
    assert not torch.allclose(answers(model, [[7, 3, "|", 9]])[0], together[0])


def test_the_siamese_reads_its_texts_apart():
    model = build(siamese=True)
    a, b = ([3, 7, "|", 9, 2], [3, "|", 7, 9, 2])
    assert not torch.allclose(answers(model, [a]), answers(model, [b]))
    assert torch.allclose(answers(build(), [a]), answers(build(), [b]))


def test_it_starts_from_its_teachers_words_and_comes_back_from_a_folder(tmp_path):
    teacher = tiny.task_model("bert", HEAD)
    model = build(teacher, embeddings="teacher")
    table = teacher.hf.get_input_embeddings().weight[:30]
    assert torch.equal(model.hf.bilstm.words.weight, table)
    assert torch.equal(model.hf.bilstm.fixed.weight, table)
    save_pretrained(model, tmp_path / "m", {name: p.detach() for name, p in model.named_parameters()})
    back = load_pretrained(str(tmp_path / "m"))
    assert torch.equal(answers(back, [[1, 2, 3]]), answers(model, [[1, 2, 3]]))
    assert back.answers == "label"


def test_word_vectors_of_a_file(tmp_path):
    file = tmp_path / "vectors.txt"
    file.write_text("3 2\nthe 0.5 -1\n. . . 4 4\nfilm 2 3 \nnever 1 1\n", encoding="utf-8")
    found = starts(file, {"the": 4, "film": 2, "##m": 7})
    assert {number: vector.tolist() for number, vector in found.items()} == {4: [0.5, -1], 2: [2, 3]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the 1 2\nfilm 1\n", "vectors.txt:2: no word vector"),
        ("the 1 2\nfilm 1 x\n", "vectors.txt:2: no word vector"),
        ("the 1 2\nfilm 1 2 3\n", "vectors.txt:2: no word vector"),
        ("the 1 2\nfilm 1 nan\n", "vectors.txt:2: no word vector"),
        ("un 1 2\n", "has no word of the tokenizer"),
        (None, "cannot read student.vectors"),
    ],
)
def test_what_is_wrong_with_a_file_of_vectors(tmp_path, text, message):
    if text is not None:
        (tmp_path / "vectors.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        starts(tmp_path / "vectors.txt", {"the": 0, "film": 1})


@pytest.mark.parametrize("head", [None, TaskHead("span", 2)])
def test_it_answers_once_a_row(head):
    with pytest.raises(UserError, match="one answer a row"):
        build(head=head)
