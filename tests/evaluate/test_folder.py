"""A plain folder of a language model on WikiText: perplexity, masked loss, and pseudo-perplexity by its definition."""

import json
import math

import pytest
import torch

from megadistill.core.errors import UserError
from megadistill.data.masking import Clm
from megadistill.evaluate.ask import Request, ask
from megadistill.evaluate.pseudo import pseudo_perplexity
from megadistill.evaluate.wikitext import Plain, plain
from megadistill.models.heads import TaskHead
from megadistill.models.loading import load_pretrained, save_pretrained
from megadistill.teachers.online import OnlineSource
from megadistill.testing import task_files, tiny

LENGTH = 12


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wikitext")
    (folder / "test.txt").write_text(" . ".join(sentence for sentence, _ in task_files.sentences(40)))
    return folder


def saved(folder, model):
    save_pretrained(model, folder, {name: p.detach() for name, p in model.named_parameters()})
    return folder


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    task_files.tokenizer(folder)
    words = len((folder / "vocab.txt").read_text().split())
    return saved(folder, tiny.language_model("bert", vocab_size=words, initializer_range=0.3))


def test_a_masked_model_has_a_masked_loss_and_no_perplexity(masked, text, tmp_path):
    found = ask(masked, Request(tasks=["wikitext"], wikitext=text, output=tmp_path))["wikitext"]
    assert 0 < found["loss"] < 10
    assert "perplexity" not in found
    assert (found["masked_share"], found["sequence_length"]) == (0.15, LENGTH)
    assert json.loads((tmp_path / "wikitext.json").read_text()) == found


def test_pseudo_perplexity_masks_one_token_at_a_time(masked, text, tmp_path):
    request = Request(tasks=["pseudo_perplexity"], wikitext=text, rows=3, output=tmp_path)
    found = ask(masked, request)["pseudo_perplexity"]
    from transformers import AutoModelForMaskedLM, BertTokenizerFast

    hf = AutoModelForMaskedLM.from_pretrained(masked).eval()
    tokenizer = BertTokenizerFast(str(masked / "vocab.txt"))
    ids = tokenizer((text / "test.txt").read_text(), add_special_tokens=False)["input_ids"]
    pieces = [ids[start : start + LENGTH - 2] for start in range(0, len(ids), LENGTH - 2)]
    pieces = [piece for piece in pieces if len(piece) == LENGTH - 2]
    losses = []
    for number in (0, (len(pieces) - 1) // 2, len(pieces) - 1):
        row = [tokenizer.cls_token_id, *pieces[number], tokenizer.sep_token_id]
        for place in range(1, LENGTH - 1):
            hidden = torch.tensor([[tokenizer.mask_token_id if at == place else id for at, id in enumerate(row)]])
            with torch.no_grad():
                losses.append(-hf(input_ids=hidden).logits[0, place].log_softmax(-1)[row[place]].item())
    assert found["num_rows"] == 3
    assert found["num_targets"] == len(losses) == 3 * (LENGTH - 2)
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert found["pseudo_perplexity"] == pytest.approx(math.exp(found["loss"]))


def test_a_causal_model_has_a_perplexity(text, tmp_path):
    folder = task_files.tokenizer(tmp_path / "gpt2")
    words = len((folder / "vocab.txt").read_text().split())
    saved(folder, tiny.language_model("gpt2", vocab_size=words))
    found = ask(folder, Request(tasks=["wikitext"], wikitext=text, output=tmp_path))["wikitext"]
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["word_perplexity"] > 1
    with pytest.raises(UserError, match="pseudo-perplexity is of masked language models"):
        ask(folder, Request(tasks=["pseudo_perplexity"], wikitext=text, output=tmp_path))


def test_what_such_a_folder_cannot_be_asked(masked, text, tmp_path):
    for tasks, message in (
        (["wikitext"], "wikitext needs a text"),
        (["heldout", "wikitext"], "only a run knows its text: heldout"),
        (["sst3"], "no evaluation task sst3"),
    ):
        with pytest.raises(UserError, match=message):
            ask(masked, Request(tasks=tasks, output=tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("classifier", "BertForSequenceClassification is no language model"),
        ("body", "lacks weights that .* needs"),
        ("small", "the tokenizer .* is not the model's"),
    ],
)
def test_a_checkpoint_without_a_fitting_head_or_tokenizer(text, tmp_path, kind, message):
    folder = task_files.tokenizer(tmp_path / "model")
    words = len((folder / "vocab.txt").read_text().split())
    if kind == "classifier":
        saved(folder, tiny.task_model("bert", TaskHead("label", 2), vocab_size=words))
    elif kind == "body":
        tiny.language_model("bert", vocab_size=words).hf.bert.save_pretrained(folder)
    else:
        saved(folder, tiny.language_model("bert"))
    with pytest.raises(UserError, match=message):
        ask(folder, Request(tasks=["wikitext"], wikitext=text, output=tmp_path / "scores"))
    assert not (tmp_path / "scores").exists()


def test_a_teacher_is_scored_on_the_same_rows(masked, text):
    model = load_pretrained(str(masked))
    own = plain(model, str(masked))
    assert (own.packing, own.sequence_length, own.targets.kind) == ("split", LENGTH, "mlm")
    source = OnlineSource(str(masked), model)
    found = pseudo_perplexity(text, own, source, source, rows=2)
    assert found["teacher_pseudo_perplexity"] == found["pseudo_perplexity"]
    with pytest.raises(UserError, match="causal"):
        pseudo_perplexity(text, Plain(own.tokenizer, "concat", LENGTH, Clm()), source, None)
