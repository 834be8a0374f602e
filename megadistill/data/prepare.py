"""How corpora become shards, once: read and tokenise each file, decide over all of them, pack, swap in whole.

Every step of a file ends with a rename, and what is written depends on nothing but the file, the config, and for the
second half on what all files hold. So any number of processes, on any number of machines, killed and started again
as often as may be, end with the same bytes.
"""

from __future__ import annotations

import errno
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from megadistill.core.errors import UserError
from megadistill.core.files import atomic_write, fsync_directory, locked, sha256_json, write_json
from megadistill.data.config import DataConfig
from megadistill.data.corpora.base import Corpus, Source
from megadistill.data.decide import Fate, Fates, decide, enough
from megadistill.data.encode import Encoded, Recipe, Task, encode, encoded, tasks
from megadistill.data.index import INDEX, read_index, read_table, write_index
from megadistill.data.locality import check_locality
from megadistill.data.pack import Folders, Packed, Shape, documents, merged, pack, pack_task, packed
from megadistill.data.packing import Frame
from megadistill.data.reader import verify
from megadistill.data.settings import differences, hashed, recorded
from megadistill.data.shards import ROWS_PER_MEMBER, token_dtype
from megadistill.data.statistics import STATS, CorpusStats, PartStats, named_bins, read_stats
from megadistill.data.stream import COUNTS
from megadistill.data.tokenization import Tokenizer, load_tokenizer
from megadistill.data.tokenizer_training import train_tokenizer
from megadistill.data.workers import Log, Workers, cores

PARTS = ("train", "held_out")

KEY_DIGITS = 16
"""Hexadecimal digits of the key in the name of the folder of what is half made."""

_OTHER_DIR = "set another data.dir"


@dataclass(frozen=True)
class Prepared:
    """Everything that is ready in `data.dir`."""

    dir: Path
    corpora: list[CorpusStats]
    fresh: list[str]
    """Names of the corpora that were made now; the others were there already."""
    unfinished: list[str]
    """Names of those that wait for files of other shares."""


def prepare(config: DataConfig, log: Log, *, workers: int | None = None, share: tuple[int, int] = (0, 1)) -> Prepared:
    """Make the shards of every corpus that has none yet, was made from something else, or is damaged.

    A corpus appears as a whole. Until then its finished files wait in `.<corpus>.<key>.making` beside its place, and
    whatever kills this loses no more than the files that were being worked on.

    Args:
        workers: processes; None: one a core. The result does not depend on it.
        share: (i, n): read only every n-th file, from the i-th; for several machines, such as the tasks of a Slurm
            array. Whoever ends last finishes the corpus.

    Raises:
        UserError: a corpus is missing, empty, or not what its name says; `data.dir` cannot be written to, or holds
            something else where the corpus belongs; the disk is full; or, when all is done, the corpus turns out too
            large for how the config wants to read it.
    """
    if config.train_tokenizer is not None:
        train_tokenizer(Path(config.tokenizer), config.train_tokenizer, config.corpora, log)
    tokenizer = load_tokenizer(config.tokenizer)
    try:
        config.dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"data.dir {config.dir} is no folder and cannot be made", str(error), _OTHER_DIR) from None
    team = Workers(cores() if workers is None else workers)
    made: list[CorpusStats] = []
    fresh: list[str] = []
    unfinished: list[str] = []
    try:
        for corpus in config.corpora:
            stats, is_fresh = _Making(config, corpus, tokenizer, team, log).run(share)
            if stats is None:
                unfinished.append(corpus.name)
            else:
                made.append(stats)
                fresh += [corpus.name] if is_fresh else []
    finally:
        team.close()
    folders = {stats.name: config.dir / stats.name / "train" for stats in made}
    check_locality(config, {name: read_table(folder, read_index(folder)) for name, folder in folders.items()})
    return Prepared(config.dir, made, fresh, unfinished)


class _Making:
    """One corpus on its way."""

    def __init__(self, config: DataConfig, corpus: Corpus, tokenizer: Tokenizer, team: Workers, log: Log) -> None:
        self.config, self.corpus, self.tokenizer, self.team, self.log = config, corpus, tokenizer, team, log
        self.final = config.dir / corpus.name
        self.settings = hashed(config, corpus, tokenizer)
        special = tokenizer.special
        frame = Frame(special.cls, special.sep, special.padding, tokenizer.sentence_ends)
        self.shape = Shape(config.packing, config.sequence_length, frame, tokenizer.vocabulary_size)
        self.recipe = Recipe(corpus, config.tokenizer, config.near_duplicates, config.decontaminate, self.settings)
        self.dtype = token_dtype(tokenizer.vocabulary_size)

    def run(self, share: tuple[int, int]) -> tuple[CorpusStats | None, bool]:
        """The stats, once it is finished, and whether it was made now."""
        index, number = share
        with self._locked(fcntl.LOCK_EX if number == 1 else fcntl.LOCK_SH):
            if (done := self._there()) is not None:
                self._tidy()
                return done, False
            _refuse_foreign(self.final)
            with self._room():
                self._encode(self.tasks[index::number])
                if number == 1:
                    return self._finish(), True
        with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB) as alone, self._room():
            if not alone:
                self.log(f"{self.corpus.name}: other shares are at work; the last of them finishes")
                return None, False
            if (done := self._there()) is not None:
                return done, False
            files = self._files()
            if len(files) < len(self.tasks) and not enough(files, self.corpus):
                self.log(f"{self.corpus.name}: {len(files):,} of {len(self.tasks):,} files; other shares have the rest")
                return None, False
            return self._finish(), True

    # ------------------------------------------------------------------ what is there

    def _there(self) -> CorpusStats | None:
        """The stats of the corpus if it is prepared and sound. Sets `key`, `tasks` and `folders`."""
        done = read_corpus_stats(self.final)
        sources = self._sources(done)
        self.tasks = tasks(sources)
        key = sha256_json([self.settings, [[s.name, s.stamp] for s in sources]])
        self.key = done.key if done is not None and not sources else key
        self.folders = Folders(self.final.with_name(f".{self.corpus.name}.{self.key[:KEY_DIGITS]}.making"))
        if done is None:
            return None
        if done.key != self.key:
            others = "; ".join(differences(done.made_with or {}, recorded(self.config, self.corpus), self.corpus.name))
            self.log(
                f"{self.corpus.name}: replaces what is in {self.final} once done: {others or 'its sources differ'}"
            )
            return None
        problems = [problem for part in PARTS for problem in verify(self.final / part)]
        for problem in problems:
            self.log(f"{self.corpus.name}: making it again: {problem}")
        if problems:
            return None
        self.log(f"{self.corpus.name}: prepared already and sound, {done.train.rows:,} rows in {self.final}")
        return done

    def _sources(self, done: CorpusStats | None) -> list[Source]:
        """None if they cannot be seen from here and the corpus is there with these settings."""
        try:
            return self.corpus.sources()
        except UserError as error:
            if done is None or done.settings != self.settings:
                raise
            self.log(f"{self.corpus.name}: not checked for changes: {error.what}")
            return []

    def _files(self) -> list[Encoded]:
        """The encoded files that are there, up to the first that is not."""
        found = []
        for task in self.tasks:
            if not (self.folders.encoded / f"{task.number:06d}.npz").exists():
                break
            found.append(encoded(self.folders.encoded, task.number, self.dtype))
        return found

    # ------------------------------------------------------------------ the steps

    def _encode(self, wanted: list[Task]) -> None:
        self.folders.make()
        folder = self.folders.encoded
        left = [task for task in wanted if not (folder / f"{task.number:06d}.npz").exists()]
        self.log(f"{self.corpus.name}: reading {sum(len(t.sources) for t in left):,} source(s)")
        limited = self.corpus.max_documents is not None or self.corpus.max_megabytes is not None
        jobs = [(task.number, task.size, (task, self.recipe, folder)) for task in left]
        for _ in self.team.each(encode, jobs, f"{self.corpus.name}: reading", self.log):
            if limited and enough(self._files(), self.corpus):
                return

    def _finish(self) -> CorpusStats:
        files = self._files()
        fates = decide(files, self.corpus, self.config.held_out.fraction, self.config.near_duplicates)
        jobs = [
            (number, int(file.characters.sum()), (self.folders, number, fate, self.shape, self.corpus.name))
            for number, (file, fate) in enumerate(zip(files, fates, strict=True))
        ]
        for _ in self.team.each(pack_task, jobs, f"{self.corpus.name}: packing", self.log):
            pass
        train = merged((packed(self.folders, number) for number in range(len(files))), self.shape.vocabulary_size)
        held_out = self._hold_out(files, fates)
        self._index("train", train)
        self._index("held_out", held_out)
        stats = self._stats(files, fates, train, held_out)
        if not stats.train.rows:
            shutil.rmtree(self.folders.making)
            raise UserError(
                f"corpus {self.corpus.name} gives no training rows",
                f"{stats.documents} document(s), {stats.megabytes} MB of text in {len(self.tasks)} task(s)",
                "check its files and options; very short documents are dropped by packing: split",
            )
        write_json(self.folders.ready / STATS, asdict(stats))
        self._swap_in()
        dropped = stats.duplicates + stats.near_duplicates + stats.contaminated
        self.log(
            f"{self.corpus.name}: {stats.documents:,} documents ({dropped:,} dropped: {stats.duplicates:,} duplicate, "
            f"{stats.near_duplicates:,} near duplicate, {stats.contaminated:,} contaminated), "
            f"{stats.megabytes:,.1f} MB -> {stats.train.tokens:,} tokens in {stats.train.rows:,} rows, "
            f"{stats.held_out.rows:,} held out"
        )
        return stats

    def _hold_out(self, files: list[Encoded], fates: list[Fates]) -> Packed:
        texts = (text for file, fate in zip(files, fates, strict=True) for text in documents(file, fate, Fate.HELD_OUT))
        folder, most = self.folders.ready / "held_out", self.config.held_out.max_rows
        return pack(texts, self.shape, folder, self.corpus.name, 0, most)

    def _index(self, part: str, made: Packed) -> None:
        about = {
            "sequence_length": self.config.sequence_length,
            "dtype": self.dtype.name,
            "tokenizer": self.tokenizer.fingerprint,
            "vocabulary_size": self.tokenizer.vocabulary_size,
            "special_ids": self.tokenizer.special.as_dict(),
        }
        write_index(self.folders.ready / part, self.corpus.name, about, made.shards, ROWS_PER_MEMBER)

    def _stats(self, files: list[Encoded], fates: list[Fates], train: Packed, held_out: Packed) -> CorpusStats:
        with atomic_write(self.folders.ready / COUNTS, "wb") as handle:
            np.save(handle, train.counts)
        numbers = np.bincount(np.concatenate(fates), minlength=len(Fate))
        characters = sum(
            int(file.characters[(fate == Fate.TRAIN) | (fate == Fate.HELD_OUT)].sum())
            for file, fate in zip(files, fates, strict=True)
        )
        unknown = self.tokenizer.special.unk
        return CorpusStats(
            name=self.corpus.name,
            key=self.key,
            settings=self.settings,
            documents=int(numbers[Fate.TRAIN] + numbers[Fate.HELD_OUT]),
            duplicates=int(numbers[Fate.DUPLICATE]),
            near_duplicates=int(numbers[Fate.NEAR_DUPLICATE]),
            contaminated=int(numbers[Fate.CONTAMINATED]),
            megabytes=round(characters / 1e6, 3),
            unknown_share=0.0 if unknown is None else float(train.counts[unknown] / max(1, train.counts.sum())),
            document_lengths=named_bins(train.lengths + held_out.lengths),
            train=_part_stats(train, self.config.sequence_length),
            held_out=_part_stats(held_out, self.config.sequence_length),
            made_with=recorded(self.config, self.corpus),
        )

    def _swap_in(self) -> None:
        """The new folder takes the old one's place, whole."""
        for path in self.folders.ready.rglob(".*"):  # what killed processes left
            path.unlink()
        old = self.final.with_name(f".{self.corpus.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.final.exists():
            self.final.rename(old)
        self.folders.ready.rename(self.final)
        fsync_directory(self.config.dir)
        self._tidy()

    def _tidy(self) -> None:
        """Nothing else of this corpus stays."""
        key = "[0-9a-f]" * KEY_DIGITS
        for pattern in (f".{self.corpus.name}.{key}.making", f".{self.corpus.name}.old"):
            for folder in self.config.dir.glob(pattern):
                shutil.rmtree(folder, ignore_errors=True)

    # ------------------------------------------------------------------ guards

    def _locked(self, kind: int) -> AbstractContextManager[bool]:
        """Only one process finishes a corpus; shares read together."""
        path = self.config.dir / f".{self.corpus.name}.lock"
        try:
            path.touch()
        except OSError as error:
            raise UserError(f"data.dir {self.config.dir} cannot be written to", str(error), _OTHER_DIR) from None
        return locked(path, kind)

    @contextmanager
    def _room(self) -> Iterator[None]:
        """A disk that is full or may not be written to is the user's to mend; what is finished stays for later."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise UserError(f"data.dir {self.config.dir} cannot be written to", str(error), _OTHER_DIR) from None
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            making = self.folders.making
            finished = sum(path.stat().st_size for path in making.rglob("*") if path.is_file()) / 1e6
            free = shutil.disk_usage(self.config.dir).free / 1e6
            raise UserError(
                f"corpus {self.corpus.name}: no space left in {self.config.dir}",
                f"{free:,.0f} MB are free; {finished:,.0f} MB of finished work wait in {making.name}",
                "make room and start again, set data.dir to a larger disk, or max_documents or max_megabytes of the "
                "corpus",
            ) from None


def read_corpus_stats(folder: Path) -> CorpusStats | None:
    """The stats of a prepared corpus; None if there is none."""
    if not all((folder / name).exists() for name in (COUNTS, *(f"{part}/{INDEX}" for part in PARTS))):
        return None
    return read_stats(folder / STATS)


# ------------------------------------------------------------------------------------------ details


def _part_stats(part: Packed, length: int) -> PartStats:
    rows, tokens = sum(shard.rows for shard in part.shards), int(part.counts.sum())
    return PartStats(part.documents, tokens, rows, round(1 - tokens / (rows * length), 6) if rows else 0.0)


def _refuse_foreign(final: Path) -> None:
    """What stands in a corpus's place is about to be deleted: it may be the user's own text of the same name."""
    if not final.exists() or any((final / name).exists() for name in (STATS, f"{PARTS[0]}/{INDEX}")):
        return
    names = sorted(path.name for path in final.iterdir()) if final.is_dir() else [final.name]
    if names:
        raise UserError(
            f"{final} was not made by prepare, and would be replaced by the shards",
            f"it holds {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}",
            _OTHER_DIR,
        )
