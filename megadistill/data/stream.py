"""Which micro-batches a rank trains on at a step: a pure function of (config, seed, step)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megadistill.core.dist import World
from megadistill.core.errors import UserError
from megadistill.core.files import sha256_json
from megadistill.core.types import Batch
from megadistill.data.config import DataConfig
from megadistill.data.hashing import U64, row_keys
from megadistill.data.index import INDEX, TABLE
from megadistill.data.locality import check_locality
from megadistill.data.masking import Vocabulary
from megadistill.data.order import ORDER_VERSION, BatchSizes, Order, Places
from megadistill.data.reader import Shards
from megadistill.data.rows import Rows
from megadistill.data.settings import checked_index
from megadistill.data.staging import Stage, Staging, fetch_small
from megadistill.data.statistics import STATS
from megadistill.data.tokenization import load_tokenizer

COUNTS = "token_counts.npy"
"""Beside a corpus's train folder: [vocabulary] int64, how often each id occurs in its training rows."""

LOCATED_AT_ONCE = 4096
"""Rows whose places are worked out together, where steps are small."""

I64 = NDArray[np.int64]


class Part:
    """One part (train or held_out) of all corpora, opened and checked against the config.

    Raises:
        UserError: not prepared, prepared otherwise than the config says, or damaged.
    """

    def __init__(self, config: DataConfig, part: str) -> None:
        tokenizer = load_tokenizer(config.tokenizer)
        self.config, self.part = config, part
        self.tokenizer = tokenizer.fingerprint
        self.shards: list[Shards] = []
        for corpus in config.corpora:
            folder = config.dir / corpus.name / part
            _fetch_index(config, corpus.name, part)
            index = checked_index(config, corpus, part, tokenizer)
            self.shards.append(Shards(folder, config.read, _stage(config, corpus.name, part, index.fingerprint)))
        self.starts = np.cumsum([0, *map(len, self.shards)])
        """Number of the first row of each corpus, counted over all of them; and the number of all rows."""
        counts = _token_counts(config, tokenizer.vocabulary_size)
        special = tokenizer.special
        self.vocabulary = Vocabulary(
            tokenizer.vocabulary_size, special.mask, special.ids(), counts, tokenizer.opens_word
        )
        config.targets.check(self.vocabulary)

    @property
    def sizes(self) -> list[int]:
        return [len(shards) for shards in self.shards]

    @property
    def sequence_length(self) -> int:
        return self.config.sequence_length

    @property
    def staging(self) -> Staging | None:
        return self.config.read.staging

    @property
    def counts(self) -> I64 | None:
        return self.vocabulary.counts

    def order(self, seed: int, skips: Sequence[tuple[int, int]]) -> Order:
        config = self.config
        for corpus, num_rows in zip(config.corpora, self.sizes, strict=True):
            if not num_rows:
                folder = config.dir / corpus.name
                raise UserError(f"corpus {corpus.name} has no training rows", f"{folder}", "give it more text")
        order = _order(self, seed, skips)
        pairs = zip(config.corpora, self.shards, strict=True)
        check_locality(config, {corpus.name: shards.table for corpus, shards in pairs})
        return order

    def fingerprint(self, seed: int) -> str:
        config = self.config
        return sha256_json(
            {
                "order": [config.order, ORDER_VERSION, seed],
                "blocks": config.blocks.model_dump() if config.order == "block" else None,
                "passes": [[corpus.repeats, corpus.epochs] for corpus in config.corpora],
                "corpora": [[c.name, s.index.fingerprint] for c, s in zip(config.corpora, self.shards, strict=True)],
                "weights": config.weights,
                "targets": config.targets.model_dump(mode="json"),
            }
        )

    def batch(self, places: Places, seed: int, purpose: str) -> Batch:
        """The rows at `places`, with their targets drawn for (seed, purpose, corpus, epoch, row)."""
        shape = (len(places.row), self.config.sequence_length)
        tokens, segments = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
        keys = np.empty(len(places.row), dtype=np.uint64)
        for number in np.unique(places.corpus):
            here = places.corpus == number
            epochs, rows = places.epoch[here], places.row[here]
            tokens[here], segments[here] = self.shards[number].rows(rows)
            drawing = self.config.targets.drawn_anew(epochs)
            keys[here] = row_keys(
                self.config.targets.seed_for(seed), purpose, self.config.corpora[number].name, drawing, rows
            )
        return self._batch(tokens, segments, keys, places)

    def replacement(self) -> Batch:
        """[1] what stands for each row that was given up as damaged, of whatever corpus."""
        tokens, segments = (part[None].astype(np.int64) for part in self.shards[0].replacement())
        first = np.zeros(1, dtype=np.int64)
        return self._batch(tokens, segments, first.astype(np.uint64), Places(first, first, first))

    def _batch(self, tokens: I64, segments: I64, keys: U64, places: Places) -> Batch:
        self._check_range(tokens)
        ids, labels = self.config.targets.apply(tokens, segments, keys, self.vocabulary)
        return Batch(
            ids=torch.from_numpy(ids),
            mask=torch.from_numpy(segments > 0),
            segments=torch.from_numpy(segments),
            labels=torch.from_numpy(labels),
            rows=torch.from_numpy(self.starts[places.corpus] + places.row),
            corpora=torch.from_numpy(places.corpus),
        )

    def micro_batches(self, places: Places, size: int, seed: int, purpose: str) -> list[Batch]:
        return self.batch(places, seed, purpose).split(size)

    def _check_range(self, tokens: I64) -> None:
        """Inputs and labels are these ids; on a GPU one out of range fails long after, without a name."""
        size = self.vocabulary.size
        for worst in (tokens.min(), tokens.max()):
            if not 0 <= worst < size:
                raise UserError(
                    f"a row holds the token id {worst}, and the tokenizer has {size:,} entries",
                    f"{self.config.dir}",
                    "run `megadistill prepare FILE` again",
                )

    def fetch(self, places: Places) -> None:
        """Bring the shards of these rows near."""
        for number in np.unique(places.corpus):
            shards = self.shards[number]
            for shard in np.unique(shards.shards_of(places.row[places.corpus == number])):
                shards.fetch(int(shard))

    def lost(self) -> list[dict[str, Any]]:
        """The rows [first, behind the last) that were given up as damaged, by corpus, part and shard."""
        return [
            {"corpus": corpus.name, "part": self.part, "shard": lost.shard, "rows": [lost.start, lost.stop]}
            for corpus, shards in zip(self.config.corpora, self.shards, strict=True)
            for lost in shards.lost()
        ]

    def lose(self, lost: Iterable[Mapping[str, Any]]) -> None:
        """Give up rows as `lost` lists them; those of other parts are passed over.

        Raises:
            UserError: these are more than may be quarantined.
        """
        of_corpus = {corpus.name: shards for corpus, shards in zip(self.config.corpora, self.shards, strict=True)}
        for rows in lost:
            if rows["part"] == self.part:
                of_corpus[rows["corpus"]].lose(*rows["rows"])


class Stream:
    """The training batches of one rank. Holds no position: any step can be taken at any time.

    Args:
        config: what is read, and how it is mixed and masked; or training rows that are open already.
        world: which rank this is, of how many.
        global_size: rows per step over all ranks; a multiple of micro_size x ranks.
        sizes: (0-based step, global_size from there on), for runs whose batch grows.
        micro_size: rows per micro-batch of one rank.
        seed: the run's seed.
        skips: windows [start, stop) of draws that are never trained on (see `window`).

    Raises:
        UserError: not prepared, prepared otherwise than the config says, or damaged.
    """

    def __init__(
        self,
        config: DataConfig | Rows,
        world: World,
        global_size: int,
        micro_size: int,
        seed: int,
        skips: Sequence[tuple[int, int]] = (),
        sizes: Sequence[tuple[int, int]] = (),
    ) -> None:
        assert all(size % (micro_size * world.size) == 0 for size in (global_size, *(s for _, s in sizes)))
        self.world, self.global_size, self.micro_size, self.seed = world, global_size, micro_size, seed
        self.sizes = BatchSizes(global_size, sizes)
        self._located = lru_cache(maxsize=4)(self._locate)
        self.part: Rows = Part(config, "train") if isinstance(config, DataConfig) else config
        self.staging = self.part.staging
        self.leave_out(skips)
        self.rows_per_epoch = int(self.order.starts[-1])
        """Rows of all corpora together, repeats counted."""
        self.fingerprint = self.part.fingerprint(seed)
        """Equal when every step yields equal global batches at equal global_size and skips."""

    def take(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a 0-based step."""
        return self.part.micro_batches(self.places(step), self.micro_size, self.seed, "targets")

    def places(self, step: int) -> Places:
        """Where the rows of this rank's part of a step are, in its order."""
        endless = self.order.length is None  # else the steps behind this one may be beyond the end
        at_once = max(1, LOCATED_AT_ONCE * self.world.size // self.global_size) if endless else 1
        return self._located(step - step % at_once, at_once)[step % at_once]

    def _locate(self, first: int, number: int) -> list[Places]:
        """The places of so many steps: small steps are located together, which costs little more than one."""
        steps, world = range(first, first + number), self.world
        mine = [self.sizes.positions(step, world.rank, world.size, self.micro_size) for step in steps]
        cuts = np.cumsum([len(positions) for positions in mine])[:-1]
        located = self.order.locate(np.concatenate(mine))
        return [Places(*parts) for parts in zip(*(np.split(field, cuts) for field in located), strict=True)]

    def leave_out(self, skips: Sequence[tuple[int, int]]) -> None:
        """From here on, `skips` instead of those given before."""
        self.order = self.part.order(self.seed, skips)
        self._located.cache_clear()

    def window(self, start_step: int, end_step: int) -> tuple[int, int]:
        """The draws that steps [start_step, end_step) stand on: what to add to `skips` to leave them out."""
        first, last = self.sizes.span(start_step)[0], self.sizes.span(end_step)[0] - 1
        start, stop = self.order.draws(np.array([first, last], dtype=np.int64)).tolist()
        return start, stop + 1

    def prefetching(
        self, start_step: int, end_step: int, ahead: int = 2, pinned: bool = False
    ) -> Iterator[list[Batch]]:
        """`take` of each step in turn, made up to `ahead` steps early by a thread; its errors rise here.

        Args:
            pinned: in memory that a GPU fetches from by itself.
        """
        ready: queue.Queue[list[Batch] | BaseException] = queue.Queue(maxsize=ahead)
        stop = threading.Event()
        fetched = threading.Semaphore(0 if self.staging is None else self.staging.ahead)

        def put(item: list[Batch] | BaseException) -> None:
            while not stop.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for step in range(start_step, end_step):
                    if stop.is_set():
                        return
                    made = self.take(step)
                    put([batch.pinned() for batch in made] if pinned else made)
                    fetched.release()
            except BaseException as error:  # everything belongs to the consumer
                put(error)

        def fetch() -> None:
            """Shards come near some steps before `work` wants them; what goes wrong, it will find again."""
            for step in range(start_step, end_step):
                while not fetched.acquire(timeout=0.1):
                    if stop.is_set():
                        return
                try:
                    self.part.fetch(self.places(step))
                except (UserError, OSError):
                    return

        threads = [threading.Thread(target=work, name="data", daemon=True)]
        if self.staging is not None:
            threads.append(threading.Thread(target=fetch, name="staging", daemon=True))
        for thread in threads:
            thread.start()
        try:
            for _ in range(start_step, end_step):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            for thread in threads:
                thread.join()


class HeldOut:
    """The held-out rows of all corpora, or of a task, opened once for all the evaluations of a run.

    Raises:
        UserError: not prepared, prepared otherwise than the config says, or damaged.
    """

    def __init__(self, config: DataConfig | Rows) -> None:
        self.part: Rows = Part(config, "held_out") if isinstance(config, DataConfig) else config

    def batches(self, micro_size: int, seed: int, world: World, max_rows: int | None = None) -> Iterator[Batch]:
        """This rank's micro-batches, the same ones with the same targets at every call.

        Rows come from all corpora, drawn without replacement when `max_rows` is fewer than there are. They are
        dealt to ranks evenly, the remainder left out, so all ranks yield equally many batches of equal sizes (the
        last may be smaller than micro_size).

        Raises:
            UserError: fewer held-out rows than ranks.
        """
        available = sum(self.part.sizes)
        per_rank = min(available, max_rows or available) // world.size
        if per_rank == 0:
            raise UserError(
                f"{available} held-out row(s) for {world.size} rank(s)",
                "every rank needs one",
                "raise data.held_out.fraction and prepare again, give more text, or use fewer ranks",
            )
        order = Order(self.part.sizes, None, seed)  # read whole: no need of blocks
        positions = np.arange(world.rank, per_rank * world.size, world.size, dtype=np.int64)
        parts = (order.locate(positions[start : start + micro_size]) for start in range(0, per_rank, micro_size))
        return (self.part.batch(places, seed, "held-out targets") for places in parts)


def _order(part: Part, seed: int, skips: Sequence[tuple[int, int]]) -> Order:
    config, weights = part.config, part.config.weights
    return Order(
        [len(shards) for shards in part.shards],
        weights,
        seed,
        skips,
        repeats=None if weights else [corpus.repeats for corpus in config.corpora],
        epochs=[corpus.epochs for corpus in config.corpora] if weights else None,
        blocks=config.blocks if config.order == "block" else None,
    )


def _fetch_index(config: DataConfig, corpus: str, part: str) -> None:
    """Shards in an object store: their index, counts and settings are needed near before anything else."""
    staging = config.read.staging
    if staging is not None and staging.source is not None:
        for name in (f"{part}/{TABLE}", f"{part}/{INDEX}", COUNTS, STATS):
            fetch_small(f"{staging.source.rstrip('/')}/{corpus}/{name}", config.dir / corpus / name)


def _stage(config: DataConfig, corpus: str, part: str, fingerprint: str) -> Stage | None:
    staging = config.read.staging
    if staging is None:
        return None
    far = f"{staging.source or config.dir}".rstrip("/")
    return Stage(staging, f"{far}/{corpus}/{part}", f"{corpus}-{part}-{fingerprint[:16]}")


def _token_counts(config: DataConfig, size: int) -> I64:
    total = np.zeros(size, dtype=np.int64)
    for corpus in config.corpora:
        path = config.dir / corpus.name / COUNTS
        if not path.exists():
            raise UserError(f"{path} is missing", "", "run `megadistill prepare FILE`")
        total += np.load(path)
    return total
