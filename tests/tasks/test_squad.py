"""SQuAD: the official rules on tricky answers, windows that lose nothing, and mistakes told with their place."""

import json
import random
import re
import string

import numpy as np
import pytest

from megadistill.core.errors import UserError
from megadistill.tasks import squad_metrics
from megadistill.tasks.squad import SquadTask, read
from megadistill.testing import task_files


@pytest.mark.parametrize(
    ("predicted", "gold", "exact", "f1"),
    [
        ("the Denver Broncos", "Denver Broncos!", 1, 1),
        ("a.b. c", "AB C", 1, 1),
        ("Broncos", "the Denver Broncos", 0, 2 / 3),
        ("an apple and an egg", "apple egg", 0, 0.8),
        ("10-8", "108", 1, 1),  # punctuation is removed, not replaced
        ("theatre", "the atre", 0, 0),  # articles are whole words
        ("“Broncos”", "Broncos", 0, 0),  # only ASCII punctuation
        ("Broncos  \n won", "broncos won", 1, 1),
        ("yes yes no", "yes no no", 0, 2 / 3),  # words are counted, not only looked up
        ("", "something", 0, 0),
        ("The", "a", 1, 1),  # both are nothing once normalised
    ],
)
def test_what_counts_as_the_same_answer(predicted, gold, exact, f1):
    assert squad_metrics.exact(predicted, gold) == exact
    assert squad_metrics.f1(predicted, gold) == pytest.approx(f1, abs=1e-12)


def test_squad_1_takes_the_best_of_several_golds_and_counts_the_unanswered():
    golds = {"a": ["Denver Broncos", "Broncos"], "b": ["1066"], "c": ["the"]}
    scores = squad_metrics.score_1({"a": "the Broncos", "c": "a"}, golds)
    assert scores["exact_match"] == pytest.approx(100 * 2 / 3)
    assert scores["f1"] == pytest.approx(100 / 3)  # SQuAD 1.1's script finds no common word in "a" and "the"


def test_squad_2_wants_no_answer_where_there_is_none():
    golds = {"a": ["Denver Broncos"], "b": [], "c": [], "d": ["x", "the"]}
    scores = squad_metrics.score_2({"a": "Broncos", "b": "", "c": "something", "d": "x"}, golds)
    assert scores["exact_match"] == 50
    assert scores["f1"] == pytest.approx(100 * (2 / 3 + 1 + 0 + 1) / 4)
    assert scores["has_answer_f1"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert scores["no_answer_exact_match"] == 50


def plainly(text):
    """Normalised as the papers say, by other means than the module's."""
    kept = text.lower().translate({ord(mark): None for mark in string.punctuation})
    words = re.split(r"\s+", re.sub(r"(?<!\w)(?:the|an|a)(?!\w)", " ", kept))
    return [word for word in words if word]


def plain_f1(predicted, gold):
    ours, left = plainly(predicted), plainly(gold)
    num_gold, same = len(left), 0
    for word in ours:
        if word in left:
            left.remove(word)
            same += 1
    return 2 * same / (len(ours) + num_gold) if same else 0.0


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_a_second_implementation_on_a_soup_of_answers(seed):
    draw = random.Random(seed)
    bits = [
        "the",
        "The",
        "a",
        "an",
        "Denver",
        "denver's",
        "Broncos!",
        "10-8",
        "é",
        "A.",
        "“x”",
        "under_score",
        "  ",
        "\n",
    ]

    def answer():
        return " ".join(draw.choices(bits, k=draw.randint(0, 5)))

    golds = {f"q{n}": [answer() for _ in range(draw.randint(1, 3))] for n in range(200)}
    predicted = {q: draw.choice([answer(), golds[q][0], golds[q][-1] + " the"]) for q in golds}
    scores = squad_metrics.score_1(predicted, golds)
    f1 = sum(max(plain_f1(predicted[q], gold) for gold in golds[q]) for q in golds) / 2
    exact = sum(any(plainly(predicted[q]) == plainly(gold) for gold in golds[q]) for q in golds) / 2
    assert scores == {"exact_match": pytest.approx(exact, abs=1e-9), "f1": pytest.approx(f1, abs=1e-9)}

    golds |= {q: [] for q in list(golds)[::3]}
    predicted |= {q: "" for q in list(golds)[::2]}
    wanted = 0.0
    for q, answers in golds.items():
        kept = [gold for gold in answers if plainly(gold)] or [""]
        wanted += (
            max(float(not plainly(predicted[q])) if not plainly(g) else plain_f1(predicted[q], g) for g in kept) / 2
        )
    assert squad_metrics.score_2(predicted, golds)["f1"] == pytest.approx(wanted, abs=1e-9)


@pytest.fixture
def task(tmp_path):
    files = task_files.squad(tmp_path / "squad")
    tokenizer = task_files.tokenizer(tmp_path / "tokenizer")
    options = {"sequence_length": 16, "max_question": 5, "stride": 2}
    return SquadTask(kind="squad", tokenizer=str(tokenizer), **files, **options)


def perfect(opened):
    """Logits that point at every window's label."""
    outputs = []
    for row, (start, end) in enumerate(opened.encoded.answers.astype(int)):
        logits = np.zeros((int(np.diff(opened.encoded.starts)[row]), 2), np.float32)
        logits[start, 0] = logits[end, 1] = 9
        outputs.append(logits)
    return outputs


def test_a_model_that_points_at_the_labels_scores_everything(task):
    opened = task.open("dev")
    assert len(opened.windows) > len(opened.questions)  # contexts slide
    scores, shown = opened.score(perfect(opened))
    assert scores == {"exact_match": 100, "f1": 100}
    assert shown[0]["answer"] in task_files.GOOD
    half = [row if number % 2 else -row for number, row in enumerate(perfect(opened))]
    assert opened.score(half)[0]["f1"] < 100


def test_every_token_of_a_context_is_in_some_window_and_windows_are_framed(task):
    opened = task.open("train")
    encoded = opened.encoded
    seen: dict[int, set[tuple[int, int]]] = {}
    for row, window in enumerate(opened.windows):
        ids = encoded.tokens[encoded.starts[row] : encoded.starts[row + 1]]
        segments = encoded.segments[encoded.starts[row] : encoded.starts[row + 1]]
        assert len(ids) <= 16
        assert (ids[0], ids[window.begin - 1], ids[-1]) == (2, 3, 3)
        assert set(segments[: window.begin]) == {1}
        assert set(segments[window.begin :]) == {2}
        seen.setdefault(window.question, set()).update(map(tuple, window.offsets.tolist()))
    for number, question in enumerate(opened.questions):
        read_text = "".join(question.context[a:b] for a, b in sorted(seen[number]))
        assert read_text == question.context.replace(" ", "")


def test_squad_2_declines_by_its_threshold(tmp_path, task):
    tree = json.loads(task.dev.read_text())
    for paragraph in tree["data"][0]["paragraphs"][::2]:
        paragraph["qas"][0] |= {"answers": [], "is_impossible": True}
    task.dev.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"qas\[0\]: no answer"):
        task.open("dev")
    second = task.model_copy(update={"version": "2.0"})
    opened = second.open("dev")
    scores, shown = opened.score(perfect(opened))
    assert scores["exact_match"] == 100
    assert [one["answer"] for one in shown][::2] == [""] * 8
    never = second.model_copy(update={"no_answer_threshold": 1e9}).open("dev")
    assert never.score(perfect(never))[0]["no_answer_exact_match"] < 50  # an article alone is no answer too


def changed(task, tmp_path, change):
    tree = json.loads(task.dev.read_text())
    change(tree)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(tree))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t["data"][0]["paragraphs"][3]["qas"][0]["answers"][0].update(answer_start=900),
            r"changed.json: data\[0\].paragraphs\[3\].qas\[0\]: the answer '\w+' is not in .* at character 900",
        ),
        (
            lambda t: t["data"][0]["paragraphs"][2].update(context=" "),
            r"qas\[0\]: the paragraph is empty",
        ),
        (lambda t: t["data"][0]["paragraphs"][2]["qas"][0].pop("id"), r"paragraphs\[2\].qas\[0\]: not as SQuAD's"),
        (lambda t: t["data"][0]["paragraphs"][2]["qas"][0].update(id="q0"), "1 question.* the id of another"),
        (lambda t: t["data"].clear(), "has no questions"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_place(task, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        read(changed(task, tmp_path, change), "1.1")


def test_a_question_longer_than_its_context_loses_its_end(task, tmp_path):
    def ask_at_length(tree):
        tree["data"][0]["paragraphs"][0]["qas"][0]["question"] = "who is good " * 20

    long = task.model_copy(update={"dev": changed(task, tmp_path, ask_at_length)})
    opened = long.open("dev")
    assert opened.windows[0].begin == 1 + 5 + 1
    assert opened.score(perfect(opened))[0]["exact_match"] == 100


def test_a_version_may_be_the_number_that_yaml_reads(task):
    for given in (1.1, "1.1", 2.0, "2.0"):
        assert SquadTask.model_validate({**task.model_dump(), "version": given}).version == str(given)
    with pytest.raises(ValueError, match=r"'1.1' or '2.0'"):
        SquadTask.model_validate({**task.model_dump(), "version": 2.1})


def test_windows_that_would_skip_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match="some would not be read"):
        SquadTask(kind="squad", tokenizer="t", train=tmp_path, dev=tmp_path, sequence_length=64, stride=32)
