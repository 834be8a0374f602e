"""Every kind of tokenizer file loads, knows its special ids, and has a fingerprint that means something."""

from __future__ import annotations

import json

import pytest

from megadistill.core.errors import UserError
from megadistill.data import tokenization
from megadistill.data.tokenization import SpecialIds, load_tokenizer
from megadistill.data.tokenizer_training import TrainTokenizer, train_tokenizer


def test_wordpiece_vocabulary(tokenizer_folder):
    tokenizer = load_tokenizer(str(tokenizer_folder))
    assert tokenizer.special == SpecialIds(pad=0, cls=2, sep=3, mask=4, unk=1)
    assert tokenizer.special_ids == {0, 2, 3, 4}
    assert tokenizer.vocabulary_size == 65
    ids = tokenizer.encode_batch(["Bano der.", "xyz"])
    assert tokenizer.decode(ids[0][:2]) == "bano der"
    assert ids[1] == [1]


def test_text_never_makes_special_ids(tokenizer_folder):
    tokenizer = load_tokenizer(str(tokenizer_folder))
    assert not set(tokenizer.encode("bano [MASK] [SEP] [PAD] bano")) & tokenizer.special_ids


def test_tokenizer_json_is_the_same_tokenizer(tokenizer_folder, tmp_path):
    original = load_tokenizer(str(tokenizer_folder))
    original.backend.enable_truncation(4)
    original.backend.enable_padding(length=4)
    original.backend.save(str(tmp_path / "tokenizer.json"))
    for spec in (tmp_path, tmp_path / "tokenizer.json"):
        again = load_tokenizer(str(spec))
        assert again.fingerprint == load_tokenizer(str(tokenizer_folder)).fingerprint
        assert len(again.encode("bano " * 9)) == 9  # its truncation and padding are not ours


def test_declared_special_tokens_win_over_spellings(tokenizer_folder, tmp_path):
    load_tokenizer(str(tokenizer_folder)).backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"mask_token": {"content": "bano"}, "eos_token": "[SEP]"}')
    special = load_tokenizer(str(tmp_path)).special
    assert special.mask == load_tokenizer(str(tokenizer_folder)).backend.token_to_id("bano")
    assert special.sep == 3


def test_fingerprints_tell_vocabulary_and_normalisation_apart(tokenizer_folder, tmp_path):
    from tokenizers import normalizers

    base = load_tokenizer(str(tokenizer_folder))
    words = (tokenizer_folder / "vocab.txt").read_text().split()
    (tmp_path / "vocab.txt").write_text("\n".join([*words[:-2], words[-1], words[-2]]))
    swapped = load_tokenizer(str(tmp_path))
    (tmp_path / "vocab.txt").write_text("\n".join([*words, "straße"]))
    accents = load_tokenizer(str(tmp_path))
    kept = load_tokenizer(str(tmp_path))
    kept.backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    prints = {t.fingerprint for t in (base, swapped, accents, kept)}
    assert len(prints) == 4


def test_long_documents_are_encoded_in_pieces_as_whole(tokenizer_folder, monkeypatch, documents):
    tokenizer = load_tokenizer(str(tokenizer_folder))
    text = "  \n".join(documents(50)) + "   "
    whole = tokenizer.encode(text)
    monkeypatch.setattr(tokenization, "PIECE_CHARACTERS", 20)
    assert "".join(tokenization._pieces(text)) == text
    assert tokenizer.encode_batch(["ban", text, ""]) == [tokenizer.encode("ban"), whole, []]


def test_byte_level_bpe(tmp_path):
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["the cat sat on the mat"] * 50, vocab_size=280, special_tokens=["<|endoftext|>"])
    trained.save_model(str(tmp_path))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.special.sep == tokenizer.special.padding == tokenizer.special.pad == 0
    assert tokenizer.special.cls is tokenizer.special.mask is tokenizer.special.unk is None
    text = "the cat, naïve"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_unigram_encodes_as_sentencepiece_does(tmp_path, documents):
    import sentencepiece

    (tmp_path / "text.txt").write_text("\n".join(documents(300)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        pad_id=3,
    )
    (tmp_path / "text.txt").unlink()
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.special.pad == 3
    for text in documents(20, seed=9):
        assert tokenizer.encode(text) == original.encode(text)


def test_what_is_no_tokenizer_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no such file or folder"):
        load_tokenizer(str(tmp_path / "nothing"))
    (tmp_path / "readme.md").write_text("hello")
    with pytest.raises(UserError, match=r"holds readme\.md"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        load_tokenizer(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"or there is no network(.|\n)*run `megadistill prepare` where"):
        load_tokenizer("nobody/has-this")


# ------------------------------------------------------------------ sentencepiece BPE, marks of words, training


def trained_pieces(folder, documents, **options):
    import sentencepiece

    (folder / "text.txt").write_text("\n".join(documents(300)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "spiece"), minloglevel=2, **options
    )
    (folder / "text.txt").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))


def test_sentencepiece_bpe_encodes_as_sentencepiece_does(tmp_path, documents):
    original = trained_pieces(tmp_path, documents, vocab_size=60, model_type="bpe")
    tokenizer = load_tokenizer(str(tmp_path / "spiece.model"))
    for text in [*documents(20, seed=9), "Ban  xyz der", "naïve bano"]:
        assert tokenizer.encode(text) == original.encode(text)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize(("single", "prefixed"), [(False, True), (False, False), (True, False)])
def test_spaces_are_kept_where_the_model_keeps_them(tmp_path, documents, model_type, single, prefixed):
    options = {
        "remove_extra_whitespaces": single,
        "add_dummy_prefix": prefixed,
        "allow_whitespace_only_pieces": True,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
    }
    spaced = [text.replace(" ", "  ") for text in documents(300)]
    original = trained_pieces(tmp_path, lambda number: spaced, vocab_size=330, model_type=model_type, **options)
    tokenizer = load_tokenizer(str(tmp_path / "spiece.model"))
    for text in [*documents(20, seed=9), *spaced[:9], "bano:\n    der  ban\n", " bano", "   bano ", "bano\n"]:
        assert tokenizer.encode(text) == original.encode(text), text
        assert tokenizer.decode(tokenizer.encode(text)) == original.decode(original.encode(text))


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_text_never_becomes_a_special_piece(tmp_path, documents, model_type):
    options = {"hard_vocab_limit": False} if model_type == "unigram" else {}
    trained_pieces(tmp_path, documents, vocab_size=60, model_type=model_type, **options)
    tokenizer = load_tokenizer(str(tmp_path / "spiece.model"))
    assert not set(tokenizer.encode("bano </s> der <s>")) & tokenizer.special_ids


def test_word_models_are_refused(tmp_path, documents):
    trained_pieces(tmp_path, documents, vocab_size=40, model_type="word")
    with pytest.raises(UserError, match="neither a unigram nor a BPE model"):
        load_tokenizer(str(tmp_path / "spiece.model"))


def test_tokenizers_know_where_words_and_sentences_end(tmp_path, documents):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nban\n##der\n.\n##!\n")
    pieces = load_tokenizer(str(tmp_path / "vocab.txt"))
    assert pieces.opens_word[5:].tolist() == [True, False, True, True]
    assert pieces.sentence_ends == {7, 8}
    trained_pieces(tmp_path, documents, vocab_size=60, model_type="bpe")
    tokenizer = load_tokenizer(str(tmp_path / "spiece.model"))
    ids = tokenizer.encode("bano der")
    assert tokenizer.opens_word[ids].sum() == 2
    assert tokenizer.opens_word[ids[0]]
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nban\n")
    assert load_tokenizer(str(tmp_path / "vocab.txt")).opens_word is None


@pytest.fixture
def corpus(tmp_path, documents):
    from megadistill.data.corpora.text import Text

    (tmp_path / "text.txt").write_text("\n".join([*documents(400), "Ünder [MASK] </s>"]))
    return Text(files=[str(tmp_path / "text.txt")], document="line")


@pytest.mark.parametrize("kind", ["unigram", "bpe", "wordpiece"])
def test_a_tokenizer_is_trained_when_the_config_asks(tmp_path, corpus, documents, kind):
    from transformers import AutoTokenizer

    folder, how = tmp_path / "tokenizer", TrainTokenizer(kind=kind, vocabulary=90, uncased=True)
    lines = []
    train_tokenizer(folder, how, [corpus], lines.append)
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.special == SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
    assert 40 < tokenizer.vocabulary_size <= 90
    assert tokenizer.encode("BANO") == tokenizer.encode("bano")
    assert not set(tokenizer.encode("bano [MASK] </s>")) & tokenizer.special_ids
    theirs = AutoTokenizer.from_pretrained(folder)
    text = documents(1, seed=5)[0]
    assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    assert theirs.mask_token_id == 4
    train_tokenizer(folder, how, [corpus], lines.append)
    assert sum("training" in line for line in lines) == 1  # not again
    with pytest.raises(UserError, match="trained from other settings"):
        train_tokenizer(folder, TrainTokenizer(kind=kind, vocabulary=91), [corpus], lines.append)


def test_training_a_tokenizer_replaces_nothing_and_leaves_nothing_half_made(tmp_path, corpus):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="was not trained by prepare"):
        train_tokenizer(tmp_path / "mine", TrainTokenizer(vocabulary=90), [corpus], print)
    (tmp_path / "text.txt").write_text("\n".join("".join(map(chr, range(0x400, 0x4FF))) for _ in range(50)))
    with pytest.raises(UserError, match="cannot train a bpe tokenizer with 64 entries"):
        train_tokenizer(tmp_path / "new", TrainTokenizer(kind="bpe", vocabulary=64), [corpus], print)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "text.txt"]


def test_a_few_tokens_that_look_like_wordpieces_do_not_make_them_all_such(tmp_path):
    """GPT-2's and RoBERTa's vocabulary holds #### beside tens of thousands of Ġ."""
    vocabulary = ["</s>", "####", "film", "Ġfilm", "Ġthe", "Ġa", "s"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    opens = load_tokenizer(str(tmp_path)).opens_word
    assert dict(zip(vocabulary, opens.tolist(), strict=True)) == {
        token: token.startswith("Ġ") or token == "####" for token in vocabulary
    }
