"""Train a sentencepiece unigram tokenizer on a config's corpora and write it as a Hugging Face folder.

    python tools/train_tokenizer.py configs/quickstart_teacher.yaml --vocabulary 4096 --output FOLDER

The shipped quickstart tokenizer was made by this command. Its normalisation (uncased, as ALBERT's) lies
outside the sentencepiece model; letters unseen in training become [UNK].
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from megadistill.core.schema import override, read_yaml
from megadistill.data.corpora.base import Corpus
from megadistill.data.tokenization import load_tokenizer
from megadistill.run.config import check

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def sentences(corpora: list[Corpus], megabytes: float, seed: int) -> Iterator[str]:
    """Lines of every corpus in equal shares, drawn at random over its documents."""
    draw = random.Random(seed)
    for corpus in corpora:
        documents = [d for source in corpus.sources() for d in corpus.documents(source)]
        draw.shuffle(documents)
        budget = megabytes * 1e6 / len(corpora)
        for document in documents:
            for line in document.splitlines():
                if line.strip() and budget > 0:
                    budget -= len(line)
                    yield uncased(line[:4000])


def uncased(line: str) -> str:
    """What `load_tokenizer` does to text for a model without capitals (and ALBERT does), done before training."""
    line = line.replace("``", '"').replace("''", '"')
    decomposed = unicodedata.normalize("NFKD", line)
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter)).lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--megabytes", type=float, default=30.0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    config = check(override(read_yaml(options.config), options.overrides), str(options.config))
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "spiece"
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences(config.data.corpora, options.megabytes, config.seed),
            model_prefix=str(prefix),
            vocab_size=options.vocabulary,
            model_type="unigram",
            normalization_rule_name="identity",
            character_coverage=0.9995,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=SPECIAL[0],
            unk_piece=SPECIAL[1],
            bos_piece=SPECIAL[2],
            eos_piece=SPECIAL[3],
            user_defined_symbols=SPECIAL[4:],
            num_threads=2,
            shuffle_input_sentence=False,
            minloglevel=1,
        )
        (options.output / "spiece.model").write_bytes(prefix.with_suffix(".model").read_bytes())
    write_huggingface(options.output)
    sys.stdout.write(f"{options.output}: {load_tokenizer(str(options.output)).vocabulary_size} entries\n")


def write_huggingface(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json beside spiece.model, for `AutoTokenizer.from_pretrained`."""
    from tokenizers import processors

    tokenizer = load_tokenizer(str(folder / "spiece.model"))
    backend = tokenizer.backend
    backend.add_special_tokens(SPECIAL)
    cls, sep = ("[CLS]", tokenizer.special.cls), ("[SEP]", tokenizer.special.sep)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[cls, sep]
    )
    backend.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128}
    roles = zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **dict(roles)}, indent=2) + "\n")


if __name__ == "__main__":
    main()
