"""The default corpus: prose is kept, code is not, and it is the same on every reading."""

from __future__ import annotations

import pytest

from megadistill.core.errors import UserError
from megadistill.data.corpora.base import Source
from megadistill.data.corpora.prose import Prose, comments, docstrings, keep_prose

DOCSTRING = """
    Return the sum of two numbers, which is what this :func:`add` is for in every program.

    Args:
        a (int): The first of the two numbers that are to be added to each other.
        b: int

    >>> add(1, 2)
    3

    Example::

        for the_number in numbers: and so on it is the code of a loop in the example.

    Parameters
    ----------
    x : float
        The number that is **added** in the end, or nothing.

    ```python
    This is the code of a program, and it is not to be read.
    ```
    - An item of a list that reads as a sentence, and is kept.
    """

KEPT = [
    "Return the sum of two numbers, which is what this add is for in every program.",
    "The first of the two numbers that are to be added to each other.",
    "The number that is added in the end, or nothing.",
    "An item of a list that reads as a sentence, and is kept.",
]


def test_sentences_are_kept_and_code_is_not():
    assert keep_prose(DOCSTRING).splitlines() == KEPT


def test_short_pieces_are_dropped():
    assert keep_prose("Return the sum of the two numbers in a list.") == ""


def test_docstrings_of_modules_classes_functions_and_mappings():
    code = '"""m"""\nclass A:\n  """c"""\n  def f(self):\n    """f"""\n    return "no"\nT = {"k": """t"""}\n'
    assert list(docstrings(code)) == ["m", "c", "f", "t"]
    assert list(docstrings('"""broken"""\ndef (')) == []


def test_comments_of_two_lines_or_more():
    assert list(comments("# one\nx = 1\n  # two\n  # three\ny = 2\n")) == [" two\n three"]


def test_the_standard_library_reads_the_same_every_time():
    import json

    corpus = Prose(packages=[])
    sources = corpus.sources()
    folder = Source(str(json.__path__[0]))
    assert folder.name in {source.name for source in sources}
    assert not any("site-packages" in source.name for source in sources)
    first = list(corpus.documents(folder))
    assert first == list(corpus.documents(folder))
    assert any("JSON" in document for document in first)
    assert corpus.sources() == sources


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(UserError, match="no package 'not_installed_here'"):
        Prose(packages=["not_installed_here"]).sources()
