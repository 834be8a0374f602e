"""Small task data in the published formats, with something in it to be learnt."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

GOOD, BAD = ("good", "fine", "lovely", "clever"), ("bad", "dull", "awful", "stupid")
PLAIN = ("the", "film", "was", "a", "story", "of", "man", "who", "sees", "her", "city", "and", "goes", "home")
WORDS = sorted({*GOOD, *BAD, *PLAIN, "who", "is", "in", "one", "two", "three", ",", "."})


def tokenizer(folder: Path) -> Path:
    """A WordPiece vocabulary of these words, and letters for all others."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789?'")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocabulary += [one for letter in letters for one in (letter, f"##{letter}") if one not in vocabulary]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return folder


def sentences(count: int, seed: int = 0) -> list[tuple[str, int]]:
    """(text, 1 if it praises), half of each."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        words = draw.choices(PLAIN, k=draw.randint(3, 9))
        words[draw.randrange(len(words))] = draw.choice(GOOD if number % 2 else BAD)
        made.append((" ".join(words), number % 2))
    return made


def sst2(folder: Path, train: int = 64, dev: int = 32) -> Path:
    """GLUE's SST-2 in its original layout; returns the root."""
    for part, count in (("train", train), ("dev", dev)):
        rows = [f"{text} \t{label}" for text, label in sentences(count, seed=count)]
        _write(folder / "SST-2" / f"{part}.tsv", ["sentence\tlabel", *rows])
    return folder


def stsb(folder: Path, train: int = 64, dev: int = 32) -> Path:
    """GLUE's STS-B likewise: 5 for the same sentence, less the more words differ."""
    for part, count in (("train", train), ("dev", dev)):
        draw = random.Random(count)
        rows = ["index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"]
        for number in range(count):
            first = draw.choices(PLAIN, k=5)
            changed = draw.randint(0, 5)
            second = [draw.choice(BAD) if place < changed else word for place, word in enumerate(first)]
            cells = [str(number), "g", "f", "2012", "1", "none", "none", " ".join(first), " ".join(second)]
            rows.append("\t".join([*cells, f"{5 - changed:.3f}"]))
        _write(folder / "STS-B" / f"{part}.tsv", rows)
    return folder


def qqp(folder: Path, train: int = 32, dev: int = 16) -> Path:
    """GLUE's QQP likewise: duplicates are equal."""
    for part, count in (("train", train), ("dev", dev)):
        draw = random.Random(count)
        rows = ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"]
        for number in range(count):
            first = " ".join(draw.choices(PLAIN, k=5))
            second = first if number % 2 else " ".join(draw.choices(PLAIN, k=5))
            rows.append(f"{number}\t{2 * number}\t{2 * number + 1}\t{first}\t{second}\t{number % 2}")
        _write(folder / "QQP" / f"{part}.tsv", rows)
    return folder


def imdb(folder: Path, train: int = 32, test: int = 16) -> Path:
    """IMDb in its original folders."""
    for part, count in (("train", train), ("test", test)):
        for number, (text, label) in enumerate(sentences(count, seed=count)):
            _write(folder / part / ("pos" if label else "neg") / f"{number}_{9 if label else 2}.txt", [text])
    return folder


def squad(folder: Path, train: int = 48, dev: int = 16) -> dict[str, Path]:
    """SQuAD 1.1's JSON: the answer is the word of praise in the paragraph."""
    return {part: _squad(folder / f"{part}.json", count) for part, count in (("train", train), ("dev", dev))}


def _squad(path: Path, count: int) -> Path:
    draw = random.Random(count)
    paragraphs: list[dict[str, Any]] = []
    for number in range(count):
        words = draw.choices(PLAIN, k=draw.randint(6, 14))
        place = draw.randrange(len(words))
        words[place] = draw.choice(GOOD)
        start = len(" ".join([*words[:place], ""])) if place else 0
        answers = [{"answer_start": start, "text": words[place]}]
        asked = {"id": f"q{number}", "question": "who is good ?", "answers": answers}
        paragraphs.append({"context": " ".join(words), "qas": [asked]})
    tree = {"version": "1.1", "data": [{"title": "made", "paragraphs": paragraphs}]}
    _write(path, [json.dumps(tree)])
    return path


def race(folder: Path, train: int = 24, dev: int = 8) -> Path:
    """RACE in its original folders, two questions an article: the right option is the word of praise in it."""
    for part, count in (("train", train), ("dev", dev), ("test", dev)):
        draw = random.Random(f"{part}{count}")
        for number in range(count):
            level, questions, options, answers = ("middle", "high")[number % 2], [], [], []
            words, goods = draw.choices(PLAIN, k=8), draw.sample(GOOD, 1)
            words[draw.randrange(8)] = goods[0]
            for asked in ("who is _ ?", "the film was"):
                shown = [*goods, *draw.sample(BAD, 3)]
                draw.shuffle(shown)
                questions.append(asked)
                options.append(shown)
                answers.append("ABCD"[shown.index(goods[0])])
            tree = {"answers": answers, "options": options, "questions": questions, "article": " ".join(words)}
            _write(folder / part / level / f"{number}.txt", [json.dumps({**tree, "id": f"{level}{number}.txt"})])
    return folder


def vectors(path: Path, width: int = 6) -> Path:
    """A vector of each word in GloVe's text format, and of two that WordPiece has in pieces only."""
    draw = random.Random(width)
    words = [*WORDS, "unseen", "unheard"]
    _write(path, [" ".join([word, *(f"{draw.gauss(0, 1):.4f}" for _ in range(width))]) for word in words])
    return path


def tagger(folder: Path) -> Path:
    """NLTK's tagger, trained here on sentences of this file, each word with one tag; in its own three files."""
    from nltk.tag.perceptron import PerceptronTagger

    praise = dict.fromkeys((*GOOD, *BAD), "JJ")
    tags = {**dict.fromkeys(PLAIN, "NN"), "sees": "VBZ", "goes": "VBZ", "was": "VBZ", **praise}
    made = PerceptronTagger(load=False)
    made.train([[(word, tags[word]) for word in text.split()] for text, _ in sentences(200, seed=9)])
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("weights", "tagdict", "classes"), made.encode_json_obj(), strict=True):
        (folder / f"averaged_perceptron_tagger_tst.{name}.json").write_text(json.dumps(part), encoding="utf-8")
    return folder


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
