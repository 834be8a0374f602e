"""English prose that every installation carries: what Python and its packages say about themselves.

Docstrings, comments, the language reference inside `pydoc_data` and text files beside the code, without their
code, tables and headings. It needs no network and no download, so quickstart and tests can pretrain on it
anywhere; it is small and about programming, so results on it say nothing about results on Wikipedia.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from megadistill.core.errors import UserError
from megadistill.data.corpora.base import Corpus, Source

EXTRACTION = "prose-v1"
"""Changes whenever what is extracted does."""

COMMON = ("numpy", "networkx", "pandas", "huggingface_hub", "datasets", "torch", "transformers", "sympy")
"""Packages that megadistill needs anyway, those with the most prose per second of reading first."""

MIN_CHARACTERS = 120


class Prose(Corpus):
    """Docstrings, comments and documentation of the standard library and of installed packages. A document is
    one of them."""

    kind: Literal["prose"] = "prose"
    packages: list[str] | None = None
    """Import names of installed packages; None: those of megadistill's own dependencies that are there."""
    standard_library: bool = True
    """Read that of Python itself too."""

    def sources(self) -> list[Source]:
        roots = [(Path(sysconfig.get_path("stdlib")), sys.version.split()[0])] if self.standard_library else []
        for package in COMMON if self.packages is None else self.packages:
            spec = util.find_spec(package)
            if spec is not None and spec.submodule_search_locations:
                roots.append((Path(spec.submodule_search_locations[0]), _version(package)))
            elif self.packages is not None:
                raise UserError(
                    f"corpus {self.name}: no package {package!r} to read prose from",
                    "it is not installed, or a single module",
                    f"pip install it, or take it out of corpora ({self.name}): packages",
                )
        return [
            Source(str(folder), f"{EXTRACTION}:{version}", sum(path.stat().st_size for path in _files(folder)))
            for root, version in roots
            for folder in _folders(root)
        ]

    def documents(self, source: Source) -> Iterator[str]:
        for path in _files(Path(source.name)):
            text = path.read_text(encoding="utf-8", errors="ignore")
            pieces = (*docstrings(text), *comments(text)) if path.suffix == ".py" else (text,)
            yield from filter(None, map(keep_prose, pieces))


def docstrings(code: str) -> Iterator[str]:
    """Every string of a Python file that stands for itself or in a mapping: docstrings, help topics."""
    if '"""' not in code and "'''" not in code:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old code: not ours to report
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return  # templates and tests of broken syntax are no source of prose
    for node in _statements(tree):
        values = [node.value] if isinstance(node, ast.Expr) else []
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            values = node.value.values
        for value in values:
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value


def comments(code: str) -> Iterator[str]:
    """Every comment of two lines or more."""
    for match in COMMENT.finditer(code):
        yield "\n".join(line.strip().lstrip("#") for line in match[0].splitlines())


def keep_prose(text: str) -> str:
    """The paragraphs of a text that read as English sentences, one a line; "" if little is left."""
    if len(text) < MIN_CHARACTERS:
        return ""
    kept = [paragraph for block in _blocks(inspect.cleandoc(text)) if (paragraph := _sentence(block))]
    prose = "\n".join(kept)
    return prose if len(prose) >= MIN_CHARACTERS else ""


# ------------------------------------------------------------------------------------------ what is prose

COMMENT = re.compile(r"^(?:[ \t]*#.*\n){2,}", re.M)

STRUCTURE = re.compile(
    r"\.\. |@|#+\s|[-=~^*+_`|]{3,}\s*$|\||\$ |%|[\w*.`]+(?:, [\w*.`]+)* : \S"
    r"|(?:Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?):\s*$"
)
"""A line that opens a directive, heading, rule, table, command, section or `name : type`: no sentence."""

ITEM = re.compile(r"[-*+•] |\d+[.)] |:\w[^:]*: |[`*]*\w[\w.]*[`*]*(?: ?\([^)]*\))? ?:(?:\s|$)")
"""The start of a list item or of a parameter's entry; what follows it may be a sentence."""

GLUE = "the a an of to and in is are that for with be this it as if by on or from not"
FUNCTION_WORDS = frozenset(GLUE.split())
"""English sentences hold plenty of these; code, names and tables do not."""

ODD = re.compile(r"[^A-Za-z0-9 ,.;:'\"()\-?!]")
MARKUP = (
    (re.compile(r":[a-z:]+:`~?([^`<]*?)\s*(?:<[^`]*>)?`"), r"\1"),
    (re.compile(r"\[([^\]]+)\]\([^)]*\)"), r"\1"),
    (re.compile(r"`+|\*\*"), ""),
)
"""Roles (:func:`x`), links ([x](url)) and emphasis become their text."""


def _blocks(text: str) -> Iterator[list[str]]:
    """Runs of lines that may form a paragraph: cut at blank lines, structure and items, without doctest and
    without fenced or literal code."""
    fenced = literal = False
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        body = line.strip()
        if body.startswith("```"):
            fenced, body = not fenced, ""
        literal = (literal and (not body or line[0] in " \t")) or body.startswith((">>>", "... "))
        dropped = not body or fenced or literal or STRUCTURE.match(body)
        item = None if dropped else ITEM.match(body)
        if (dropped or item) and block:
            literal = literal or block[-1].endswith("::")
            yield block
            block = []
        if not dropped:
            block.append(body[item.end() :] if item else body)


def _sentence(block: list[str]) -> str:
    """The paragraph as one line, or "" when it does not read as prose."""
    line = " ".join(block)
    if "`" in line or "](" in line or "**" in line:
        for pattern, text in MARKUP:
            line = pattern.sub(text, line)
    line = line.strip()
    if line.endswith("::"):
        line = line[:-1]
    words = line.split()
    reads_well = (
        len(words) >= 6
        and line[-1] in '.:!?)"'
        and not line[0].islower()
        and sum(word in FUNCTION_WORDS for word in line.lower().split()) >= 0.15 * len(words)
        and len(ODD.findall(line)) <= 0.03 * len(line)
    )
    return line if reads_well else ""


# ------------------------------------------------------------------------------------------ where it is

NOT_READ = {
    "test",
    "tests",
    "site-packages",
    "dist-packages",
    "ensurepip",
    "lib2to3",
    "include",
    "lib",
    "bin",
}


def _folders(root: Path) -> Iterator[Path]:
    """`root` and the folders below it, without tests, caches and copies of other packages."""
    yield root
    for path in sorted(root.iterdir()):
        skipped = path.name in NOT_READ or path.name.startswith((".", "_vendor", "__pycache__"))
        if not skipped and path.is_dir() and not path.is_symlink():
            yield from _folders(path)


def _files(folder: Path) -> list[Path]:
    """What is read of one folder."""
    readable = (".py", ".rst", ".md", ".txt")
    return sorted(path for path in folder.iterdir() if path.suffix in readable and path.is_file())


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements of modules, classes and functions in order; expressions hold no docstrings."""
    stack: list[ast.stmt] = tree.body[::-1]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.If, ast.Try)):
            stack.extend(node.body[::-1])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
