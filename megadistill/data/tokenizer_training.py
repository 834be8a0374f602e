"""How `prepare` trains a tokenizer on the corpora when the config asks for one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from megadistill.core.errors import UserError
from megadistill.core.files import sha256_json, write_json
from megadistill.core.schema import Strict
from megadistill.data import spiece
from megadistill.data.corpora.base import Corpus, Source
from megadistill.data.tokenization import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    import tokenizers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MADE = "training.json"
"""In the tokenizer's folder: what it was trained from."""

LINE_BYTES = 4000
"""Longer lines are learnt from in pieces (sentencepiece leaves out lines of more than 4192 bytes)."""

THREADS = 4
"""Fixed, since sentencepiece sums in another order with another number."""


class TrainTokenizer(Strict):
    """A tokenizer to be trained on the corpora."""

    kind: Literal["unigram", "bpe", "wordpiece"] = "unigram"
    """unigram, bpe: by sentencepiece; wordpiece: as BERT's."""
    vocabulary: int = Field(ge=64, le=1 << 20)
    """Entries, the five special ones included; fewer where the text does not carry so many."""
    megabytes: float = Field(100.0, gt=0)
    """Million characters to learn from, in equal shares of all corpora and of all their sources."""
    uncased: bool = False
    """Fold case first."""


def train_tokenizer(folder: Path, how: TrainTokenizer, corpora: Sequence[Corpus], log: Callable[[str], None]) -> None:
    """Train and write `folder`, unless it was made from the same settings and sources before.

    It appears whole, by one rename: tokenizer.json and tokenizer_config.json, for `AutoTokenizer` too, and for
    sentencepiece the model file.

    Raises:
        UserError: `folder` holds something else, or the text does not carry such a vocabulary.
    """
    sources = [corpus.sources() for corpus in corpora]
    about = {
        "how": how.model_dump(mode="json"),
        "corpora": [c.model_dump(mode="json", exclude={"weight", "repeats", "epochs"}) for c in corpora],
        "sources": [[[s.name, s.stamp] for s in each] for each in sources],
    }
    made = {"settings": how.model_dump(mode="json"), "fingerprint": sha256_json(about)}
    if folder.exists():
        return _refuse_other(folder, made)
    log(f"tokenizer: training {how.kind} with {how.vocabulary:,} entries")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.making")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        lines = _lines(list(zip(corpora, sources, strict=True)), how.megabytes * 1e6)
        backend = _wordpiece(how, lines) if how.kind == "wordpiece" else _sentencepiece(temporary, how, lines)
        write_huggingface(temporary, backend)
        write_json(temporary / MADE, made)
        if not folder.exists():  # another process may have been quicker; both made the same
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log(f"tokenizer: {load_tokenizer(str(folder)).vocabulary_size:,} entries in {folder}")


def _refuse_other(folder: Path, made: dict[str, Any]) -> None:
    try:
        found = json.loads((folder / MADE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{folder} exists and was not trained by prepare",
            "data.train_tokenizer would replace what is there",
            "name a new folder in data.tokenizer, or leave out data.train_tokenizer to use this one",
        ) from None
    if found != made:
        raise UserError(
            f"the tokenizer in {folder} was trained from other settings or text",
            f"then {found.get('settings')}, now {made['settings']}",
            "name a new folder in data.tokenizer, or remove this one to train it again",
        )


def _lines(corpora: list[tuple[Corpus, list[Source]]], characters: float) -> Iterator[str]:
    for corpus, sources in corpora:
        most = characters / len(corpora)
        share = min(most, (corpus.max_megabytes or most) * 1e6) / len(sources)
        for source in sources:
            left = share
            for document in islice(corpus.read(source), corpus.max_documents):
                for line in document.splitlines():
                    yield from (piece for piece in _pieces(line) if piece.strip())
                left -= len(document)
                if left <= 0:
                    break


def _pieces(line: str) -> Iterator[str]:
    data = line.encode("utf-8", "ignore")
    for start in range(0, len(data), LINE_BYTES):
        yield data[start : start + LINE_BYTES].decode("utf-8", "ignore")


def train_pieces(folder: Path, lines: Iterable[str], kind: str, vocabulary: int, **options: Any) -> Tokenizer:
    """Train `folder`/spiece.model by sentencepiece, SPECIAL being its ids 0 to 4; `options` are its trainer's.

    Raises:
        RuntimeError, OSError: the text does not carry such a vocabulary.
    """
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "spiece"),
        model_type=kind,
        vocab_size=vocabulary,
        character_coverage=0.9995,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        pad_piece=SPECIAL[0],
        unk_piece=SPECIAL[1],
        bos_piece=SPECIAL[2],
        eos_piece=SPECIAL[3],
        shuffle_input_sentence=False,
        minloglevel=2,
        **options,
    )
    (folder / "spiece.vocab").unlink()
    return load_tokenizer(str(folder / "spiece.model"))


def write_huggingface(folder: Path, backend: tokenizers.Tokenizer, **settings: Any) -> None:
    """Write tokenizer.json and tokenizer_config.json, for `AutoTokenizer.from_pretrained`, which frames text as BERT's
    does."""
    from tokenizers import processors

    backend.add_special_tokens(list(SPECIAL))
    frame = [("[CLS]", backend.token_to_id("[CLS]")), ("[SEP]", backend.token_to_id("[SEP]"))]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=frame
    )
    backend.save(str(folder / "tokenizer.json"), pretty=False)
    roles = zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings, **dict(roles)}
    write_json(folder / "tokenizer_config.json", settings)


def _sentencepiece(folder: Path, how: TrainTokenizer, lines: Iterable[str]) -> tokenizers.Tokenizer:
    folded = how.uncased and how.kind == "unigram"  # of such a model `spiece` folds the text itself
    try:
        return train_pieces(
            folder,
            map(spiece.fold, lines) if folded else lines,
            how.kind,
            how.vocabulary,
            hard_vocab_limit=False,
            normalization_rule_name="nmt_nfkc_cf" if how.uncased and not folded else "nmt_nfkc",
            control_symbols=[SPECIAL[4]],
            num_threads=THREADS,
        ).backend
    except (RuntimeError, OSError) as error:
        raise _cannot(how, str(error)) from None


def _wordpiece(how: TrainTokenizer, lines: Iterable[str]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.WordPiece(unk_token=SPECIAL[1]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=how.uncased)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=how.vocabulary, special_tokens=list(SPECIAL), limit_alphabet=1000, show_progress=False
    )
    try:
        backend.train_from_iterator(lines, trainer)
    except Exception as error:  # the library raises bare Exception
        if isinstance(error, UserError):
            raise
        raise _cannot(how, str(error)) from None
    return backend


def _cannot(how: TrainTokenizer, reason: str) -> UserError:
    return UserError(
        f"cannot train a {how.kind} tokenizer with {how.vocabulary:,} entries",
        reason.strip().splitlines()[-1] if reason.strip() else "",
        "give it more text (data.train_tokenizer: megabytes), or another data.train_tokenizer: vocabulary",
    )
