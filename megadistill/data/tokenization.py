"""How text becomes ids: any tokenizer file of the field behind one small interface."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from megadistill.core.errors import UserError
from megadistill.core.files import sha256_json, shipped
from megadistill.data import spiece

if TYPE_CHECKING:
    import tokenizers

PIECE_CHARACTERS = 100_000
"""Longer documents are encoded in pieces, in parallel and in bounded memory."""

PROBE = (
    "The Quick brown fox doesn't jump over 1,234.5 lazy dogs; naïve cafés cost €7 -- \"isn't it?\" "
    "unaffordability antidisestablishmentarianism Straße ½ ﬁnance 東京 Москва 🙂  two spaces\tand\ta tab\n"
    "new line (see [1]) x=y**2"
)
"""Its ids are in the fingerprint: tokenizers that normalise or split otherwise never pass for one."""


@dataclass(frozen=True)
class SpecialIds:
    """Ids with a role; None where the tokenizer has no such token."""

    pad: int | None = None
    cls: int | None = None
    """Opens a document: [CLS] or a beginning-of-sequence token."""
    sep: int | None = None
    """Closes a document: [SEP] or an end-of-sequence token."""
    mask: int | None = None
    unk: int | None = None

    def as_dict(self) -> dict[str, int | None]:
        return asdict(self)

    @property
    def padding(self) -> int:
        """What fills rows: the pad token, else the separator, else 0 (padding is masked everywhere)."""
        return next(i for i in (self.pad, self.sep, 0) if i is not None)

    def ids(self) -> frozenset[int]:
        """Those that are never masked: all but the unknown token, which stands for text."""
        return frozenset(i for i in (self.pad, self.cls, self.sep, self.mask) if i is not None)


class Tokenizer:
    """Text to ids without special tokens. Text that looks like a special token is encoded as plain text."""

    def __init__(self, backend: tokenizers.Tokenizer, special: SpecialIds) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self.backend, self.special = backend, special

    @cached_property
    def vocabulary_size(self) -> int:
        """One more than the largest id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def special_ids(self) -> frozenset[int]:
        return self.special.ids()

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over vocabulary, special ids and behaviour: the same from any kind of file."""
        vocabulary = sorted(self.backend.get_vocab(with_added_tokens=True).items())
        return sha256_json([vocabulary, self.special.as_dict(), self.encode(PROBE)])

    @cached_property
    def opens_word(self) -> NDArray[np.bool_] | None:
        """[vocabulary_size] whether a token begins a word, by the marks of its kind; None where there are none.
        Tokens without a letter or digit are words by themselves."""
        tokens = self._tokens()
        marks = {
            mark: np.array([token.startswith(mark) and len(token) > len(mark) for token in tokens])
            for mark in ("##", "▁", "Ġ")
        }
        mark = max(marks, key=lambda mark: int(marks[mark].sum()))  # GPT-2 has some headings, such as ####, too
        if not marks[mark].any():
            return None
        plain = np.array([not any(letter.isalnum() for letter in token) for token in tokens])
        return np.array((marks[mark] == (mark != "##")) | plain, dtype=np.bool_)

    @cached_property
    def pair_separators(self) -> int:
        """Separators between the two texts of a pair: 2 for RoBERTa and its like, <s> A </s></s> B </s>, else 1."""
        if self.special.cls is None or self.special.sep is None:
            return 1
        if (of_pair := self.backend.num_special_tokens_to_add(True)) > 2:
            return of_pair - 2  # its file says how it frames: one opens, and one closes
        return 2 if self._tokens()[self.special.cls] == "<s>" and self.special.mask is not None else 1

    @cached_property
    def sentence_ends(self) -> frozenset[int]:
        """Ids of full stops, question and exclamation marks."""
        return frozenset(i for i, token in enumerate(self._tokens()) if token.strip("▁Ġ#") in (".", "!", "?"))

    def _tokens(self) -> list[str]:
        """The spelling of every id."""
        result = [""] * self.vocabulary_size
        for token, number in self.backend.get_vocab(with_added_tokens=True).items():
            result[number] = token
        return result

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, on all cores (RAYON_NUM_THREADS limits them)."""
        pieces, owners = [], []
        for number, text in enumerate(texts):
            for piece in _pieces(text):
                pieces.append(piece)
                owners.append(number)
        result: list[list[int]] = [[] for _ in texts]
        encodings = self.backend.encode_batch_fast(pieces, add_special_tokens=False)
        for owner, encoding in zip(owners, encodings, strict=True):
            result[owner].extend(encoding.ids)
        return result

    def decode(self, ids: Sequence[int]) -> str:
        """Readable text, special tokens shown."""
        return str(self.backend.decode(list(ids), skip_special_tokens=False))


def load_tokenizer(spec: str) -> Tokenizer:
    """Read a tokenizer.

    Args:
        spec: a folder or file (tokenizer.json; vocab.txt: WordPiece; vocab.json with merges.txt: byte-level
            BPE; *.model: sentencepiece unigram or BPE), or the name of a hub repository that has a tokenizer.json.

    Raises:
        UserError: nothing there, or not what its name says.
    """
    path = Path(shipped(spec)).expanduser()
    if path.exists():
        return _load(path)
    if path.is_absolute() or spec.startswith(".") or spec.count("/") > 1 or path.suffix in (".json", ".txt", ".model"):
        raise UserError(f"no tokenizer {spec}", "no such file or folder", "give its folder, or a name on the hub")
    return _load(_from_hub(spec))


def _load(path: Path) -> Tokenizer:
    folder, names = (path, _names(path)) if path.is_dir() else (path.parent, [path.name])
    models = [name for name in names if name.endswith(".model")]
    try:
        if "tokenizer.json" in names or (path.is_file() and path.suffix == ".json" and path.name != "vocab.json"):
            return _from_json(folder / ("tokenizer.json" if path.is_dir() else path.name))
        if "vocab.txt" in names:
            return _wordpiece(folder / "vocab.txt")
        if "vocab.json" in names and (folder / "merges.txt").exists():
            return _byte_bpe(folder)
        if models:
            return _sentencepiece(folder / models[0])
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception for a file it cannot read
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"cannot read the tokenizer in {path}", reason, "get its files again") from error
    raise UserError(
        f"no tokenizer in {path}",
        f"it holds {', '.join(names[:8]) or 'nothing'}",
        "it needs tokenizer.json, vocab.txt, vocab.json with merges.txt, or a sentencepiece *.model",
    )


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_file())


# ------------------------------------------------------------------------------------------ kinds of files

ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pad": (("pad_token",), ("[PAD]", "<pad>", "<|endoftext|>", "<|pad|>")),
    "cls": (("cls_token", "bos_token"), ("[CLS]", "<s>", "<|begin_of_text|>")),
    "sep": (("sep_token", "eos_token"), ("[SEP]", "</s>", "<|endoftext|>", "<|end_of_text|>")),
    "mask": (("mask_token",), ("[MASK]", "<mask>")),
    "unk": (("unk_token",), ("[UNK]", "<unk>")),
}
"""For each role the keys that name its token in a tokenizer's config, and else the spellings in use."""


def _special(backend: tokenizers.Tokenizer, declared: dict[str, Any]) -> SpecialIds:
    found: dict[str, int | None] = {}
    for role, (keys, spellings) in ROLES.items():
        values = [declared.get(key) for key in keys]
        named = [value["content"] if isinstance(value, dict) else value for value in values if value]
        ids = [backend.token_to_id(token) for token in (named or spellings)]
        found[role] = next((i for i in ids if i is not None), None)
    if found["unk"] is not None and found["unk"] == found["sep"]:
        found["unk"] = None  # GPT-2 declares its separator as unknown token, but encodes every byte
    if found["cls"] is not None and found["cls"] == found["sep"]:
        found["cls"] = None  # one token between documents is enough
    return SpecialIds(**found)


def _from_json(path: Path) -> Tokenizer:
    import tokenizers

    declared: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (path.parent / name).exists():
            declared |= json.loads((path.parent / name).read_text(encoding="utf-8"))
    backend = tokenizers.Tokenizer.from_file(str(path))
    return Tokenizer(backend, _special(backend, declared))


def _wordpiece(path: Path) -> Tokenizer:
    """BERT's WordPiece; uncased unless the vocabulary has a word with a capital."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    backend = Backend(models.WordPiece.from_file(str(path), unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=spiece.is_uncased(backend.get_vocab()))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return Tokenizer(backend, _special(backend, {}))


def _byte_bpe(folder: Path) -> Tokenizer:
    """GPT-2's byte-level BPE."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    backend = Backend(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, _special(backend, {}))


def _sentencepiece(path: Path) -> Tokenizer:
    backend = spiece.read(path, {token for _, spellings in ROLES.values() for token in spellings})
    return Tokenizer(backend, _special(backend, {}))


# ------------------------------------------------------------------------------------------ details


def _from_hub(name: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        path = Path(huggingface_hub.hf_hub_download(name, "tokenizer.json"))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"no tokenizer {name!r}: no such local folder, and not on the hub, or there is no network",
            reason,
            "check the name; run `megadistill prepare` where there is network, or give a local folder",
        ) from None
    for companion in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            huggingface_hub.hf_hub_download(name, companion)
        except (HfHubHTTPError, OSError, ValueError):
            continue  # optional: without it the usual spellings are looked for
    return path


def _pieces(text: str) -> Iterable[str]:
    """The text cut before single spaces between words, where no tokenizer here has a token across."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        cut = text.find(" ", start + PIECE_CHARACTERS)
        while cut > 0 and (text[cut - 1].isspace() or text[cut + 1 : cut + 2].isspace()):
            cut = text.find(" ", cut + 1)
        if cut < 0:
            break
        yield text[start:cut]
        start = cut
    yield text[start:]
