"""How a sentencepiece model file becomes a fast tokenizer that encodes as sentencepiece does."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megadistill.core.errors import UserError

if TYPE_CHECKING:
    import tokenizers

UNIGRAM, BPE = 1, 2
"""`TrainerSpec.ModelType`."""

ORDINARY = (1, 4, 6)
"""`SentencePiece.Type` of pieces that text may become: normal, user-defined, byte."""


def read(path: Path, special: Collection[str]) -> tokenizers.Tokenizer:
    """Read a unigram (ALBERT, T5) or BPE model with its normalisation; uncased if it has no capitals.

    Args:
        path: the .model file.
        special: spellings of tokens with a role, which text never becomes.

    Raises:
        UserError: a word or character model.
    """
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(path.read_bytes())
    kind = proto.trainer_spec.model_type
    if kind not in (UNIGRAM, BPE):
        raise UserError(f"{path} is neither a unigram nor a BPE model", "", "use the tokenizer.json of the same model")
    backend = Tokenizer(_unigram(proto) if kind == UNIGRAM else _bpe(proto, special))
    steps: list[Any] = []
    if kind == UNIGRAM and is_uncased(backend.get_vocab()):
        steps += [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        steps += [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    if proto.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap))
    single, prefixed = proto.normalizer_spec.remove_extra_whitespaces, proto.normalizer_spec.add_dummy_prefix
    if single:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend("▁")] if prefixed else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    # runs of spaces may be pieces, which must not be cut
    space = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=kind == UNIGRAM and single)
    apart = pre_tokenizers.Split(Regex(_first_letters(proto, special)), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([space, apart]) if kind == UNIGRAM else space
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*spaces, *([decoders.Strip(" ", 1, 0)] if prefixed else [])])
    return backend


def fold(text: str) -> str:
    """What `read` does to text for a unigram model without capitals; for who trains one, as ALBERT's authors did."""
    decomposed = unicodedata.normalize("NFKD", text.replace("``", '"').replace("''", '"'))
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter)).lower()


def is_uncased(vocabulary: Iterable[str]) -> bool:
    """No ordinary entry has a capital."""
    return re.search("[A-Z]", "\n".join(word for word in vocabulary if word[:1] not in "[<")) is None


def _first_letters(proto: Any, special: Collection[str]) -> str:
    """A pattern of the first letter of every piece that text must not become: set apart, the rest cannot match."""
    never = [p.piece for p in proto.pieces if len(p.piece) > 1 and (p.type not in ORDINARY or p.piece in special)]
    return "|".join(f"{re.escape(piece[0])}(?={re.escape(piece[1:])})" for piece in never) or r"(?!)"


def _unigram(proto: Any) -> Any:
    from tokenizers import models

    scores = [(piece.piece, piece.score) for piece in proto.pieces]
    return models.Unigram(scores, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback)


def _bpe(proto: Any, special: Collection[str]) -> Any:
    """Merges in the order of their scores: every way to cut a piece into two pieces."""
    from tokenizers import models

    ids = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    merges = []
    for piece in proto.pieces:
        if piece.type != 1 or piece.piece in special:
            continue
        whole = piece.piece
        cuts = [(whole[:cut], whole[cut:]) for cut in range(1, len(whole))]
        pairs = sorted((ids[a], ids[b], a, b) for a, b in cuts if a in ids and b in ids)
        merges += [(piece.score, a, b) for _, _, a, b in pairs]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return models.BPE(
        ids,
        [(a, b) for _, a, b in merges],
        unk_token=proto.trainer_spec.unk_piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )
