"""A teacher on ranks of its own: student ranks send it their rows, and it answers with the states that its head reads.

Its body is then on no student's device; its head is, since the head losses never form logits that could be sent. Each
student rank is linked to one teacher rank by a gloo group of two, so that a step's answers go through host memory.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megadistill.core.dist import World
from megadistill.core.errors import Exit
from megadistill.core.types import IGNORE, Attends, Batch, Signals
from megadistill.models.signals import LanguageModel, last_norm

_HEADER = 256
"""Numbers in the head of a message: what it is, rows, positions, how it attends, how many states, which."""
_ASK, _BYE = 1, 2
_ATTENDS: tuple[Attends, ...] = get_args(Attends)


class Link:
    """A student rank's end."""

    def __init__(self, store: dist.Store, student: int, timeout_seconds: float, on_wish: Callable[[], None]) -> None:
        """`on_wish`: called when the teacher's rank was asked to stop; the run does, not the teacher."""
        self._group = _pair(store, student, 0, timeout_seconds)
        self._on_wish = on_wish

    def ask(
        self, batch: Batch, hidden: frozenset[int], attends: Attends, width: int, dtype: torch.dtype
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The last hidden state [B, L, H] of a batch and those asked for by number, on the batch's device."""
        home, layers = batch.home, sorted(hidden - {-1})
        rows, length = home.ids.shape
        self._send([_ASK, rows, length, _ATTENDS.index(attends), len(layers), *layers])
        self._group.send([torch.stack([home.ids, home.segments, home.mask.long()])], 1, 0).wait()
        wish = torch.empty(1, dtype=torch.int64)
        states = torch.empty(1 + len(layers), rows, length, width, dtype=dtype)
        for tensor in (wish, states):
            self._group.recv([tensor], 1, 0).wait()
        if wish.item():
            self._on_wish()
        moved = states.to(batch.ids.device, non_blocking=True)
        found = dict(zip(layers, moved[1:], strict=True))
        return moved[0], found | ({-1: moved[0]} if -1 in hidden else {})

    def close(self, code: int) -> None:
        """Let the teacher's rank go, with the exit code that it is to have."""
        self._send([_BYE, code])

    def _send(self, numbers: list[Any]) -> None:
        header = torch.zeros(_HEADER, dtype=torch.int64)
        header[: len(numbers)] = torch.tensor([int(number) for number in numbers])
        self._group.send([header], 1, 0).wait()


class FarModel(LanguageModel):
    """A model whose body is on another rank; its head is here."""

    def __init__(self, hf: Any, link: Link, device: torch.device) -> None:
        super().__init__(hf)
        self.link, self.device = link, device

    def let_go(self) -> None:
        """Drop the body, in host memory until now: the student has taken from it what it starts with. The head goes to
        the device, and the norm before it, which states of inner layers need."""
        body = nn.Module()
        body.register_module("norm", last_norm(self.hf))
        setattr(self.hf, self.hf.base_model_prefix, body)
        self.to(self.device)

    @property
    def num_tokens(self) -> int:
        return int(self.hf.config.vocab_size)

    def signals(
        self,
        batch: Batch,
        hidden: frozenset[int],
        attention: frozenset[int] = frozenset(),
        replaced: Mapping[int, Tensor] | None = None,
        where: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Signals:
        """As any model's; attention and replaced states cannot be had from afar."""
        assert not attention
        assert not replaced
        config, dtype = self.hf.config, next(self.parameters()).dtype
        last, states = self.link.ask(batch, hidden, self.attends, config.hidden_size, dtype)
        return Signals(self.head_on(batch, last, states), states)

    def check_head(self, length: int = 8) -> None:
        """The teacher's rank does."""


_link: Link | None = None


def join(link: Link) -> None:
    """Teachers that are built in this process from here on, and have ranks of their own, are reached by `link`."""
    global _link
    _link = link


def current() -> Link | None:
    """This process's link, if it is a student of a teacher with ranks of its own."""
    return _link


def leave(code: int) -> None:
    """Let this process's teacher go, if it has one apart; what cannot be told to it any more is not told."""
    global _link
    if _link is not None:
        with contextlib.suppress(RuntimeError):  # it is gone already, and its launcher says why
            _link.close(code)
        _link = None


def serve(
    model: LanguageModel,
    store: dist.Store,
    world: World,
    students: int,
    timeout_seconds: float,
    wish: Callable[[], bool],
) -> Exit:
    """Answer this rank's students until they let go.

    Args:
        model: the teacher, in evaluation mode, on its device.
        store: where all ranks have met.
        world: all ranks; this one is not among the first `students`.
        wish: whether this process was asked to stop, which its students are told.

    Returns:
        the exit code that the students have.

    Raises:
        RuntimeError: a student went away without a word; or whatever the model raised.
    """
    model.check_head()
    mine, teachers = world.rank - students, world.size - students
    ours = [student for student in range(students) if student * teachers // students == mine]
    ended: queue.Queue[int | Exception] = queue.Queue()
    lock = threading.Lock()

    def answer(student: int) -> None:
        try:
            ended.put(_answer(model, _pair(store, student, 1, timeout_seconds), lock, wish))
        except Exception as error:
            ended.put(error)

    for student in ours:
        threading.Thread(target=answer, args=(student,), daemon=True).start()
    code = Exit.DONE
    for _ in ours:
        outcome = ended.get()
        if isinstance(outcome, Exception):
            raise outcome
        code = max(code, Exit(outcome))
    return code


@torch.no_grad()
def _answer(model: LanguageModel, group: Any, lock: threading.Lock, wish: Callable[[], bool]) -> int:
    device = next(model.parameters()).device
    while True:
        header = torch.empty(_HEADER, dtype=torch.int64)
        try:
            group.recv([header], 0, 0).wait()
        except RuntimeError as error:
            raise RuntimeError("a student's rank went away without a word") from error
        what, rows, length, attends, count, *layers = header.tolist()
        if what == _BYE:
            return int(rows)
        given = torch.empty(3, rows, length, dtype=torch.int64)
        group.recv([given], 0, 0).wait()
        ids, segments, mask = given
        batch = Batch(ids, mask.bool(), segments, torch.full_like(ids, IGNORE), torch.arange(rows)).to(device)
        with lock:
            model.attends = _ATTENDS[attends]
            states = model.signals(batch, frozenset([-1, *layers[:count]])).hidden
        together = torch.stack([states[layer] for layer in (-1, *layers[:count])]).cpu()
        group.send([torch.tensor([int(wish())])], 0, 0).wait()
        group.send([together], 0, 0).wait()


def _pair(store: dist.Store, student: int, side: int, timeout_seconds: float) -> Any:
    """The gloo group of a student (side 0) and its teacher (side 1); it waits for the other one."""
    timeout = timedelta(seconds=timeout_seconds)
    return dist.ProcessGroupGloo(dist.PrefixStore(f"teacher/{student}", store), side, 2, timeout)
