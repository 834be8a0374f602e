"""How many files come to lie in one range of addresses, so that one gather reaches into all of them.

Rows of a batch come from as many shards as there are rows. Copying them file by file costs several times what copying
them costs (a few calls of numpy each); an array over all files takes one call. Python's `mmap` cannot say where a file
is to be mapped, and keeps a handle open for each.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_MAPPED = 1 << 15
"""Half of what Linux allows a process (vm.max_map_count)."""

_FIXED, _NO_RESERVE = 0x10, 0x4000
"""MAP_FIXED and MAP_NORESERVE, which Python's `mmap` does not name."""


class Span:
    """Addresses for files of known sizes, each mapped into its place when it is first wanted.

    Args:
        sizes: [files] bytes of each.
        blank: bytes before the first file that read as zeros.
    """

    def __init__(self, sizes: NDArray[np.int64], blank: int) -> None:
        page = mmap.PAGESIZE
        pages = -(-np.concatenate([[blank], sizes]) // page)
        ends = np.cumsum(pages * page)
        self.sizes, self.starts, self.bytes = sizes, ends[:-1], int(ends[-1])
        """`starts` [files]: where each file begins, counted from `base`."""
        self._blank = int(ends[0])
        self.mapped = np.zeros(len(sizes), dtype=np.bool_)
        self._inode = np.zeros(len(sizes), dtype=np.uint64)
        self._number = 0
        self.base = _map(None, self.bytes, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE, -1)
        release = weakref.finalize(self, _library().munmap, self.base, self.bytes)
        release.atexit = False  # a thread may still read then; the system unmaps
        self._clear()

    def absent(self, files: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of these must be mapped first. Where that would be too many, nothing is mapped any more."""
        found = np.unique(files[~self.mapped[files]])
        if self._number + len(found) > MOST_MAPPED:
            self._clear()
            found = np.unique(files)
        assert len(found) <= MOST_MAPPED
        return found

    def map(self, file: int, path: Path) -> None:
        """Put a file into its place; it is as large as was said, and stays readable if it is removed.

        Raises:
            OSError: it cannot be opened or mapped.
        """
        handle = os.open(path, os.O_RDONLY)
        try:
            at = self.base + int(self.starts[file])
            _map(at, int(self.sizes[file]), mmap.PROT_READ, mmap.MAP_SHARED | _FIXED, handle)
            self._inode[file] = os.fstat(handle).st_ino
        finally:
            os.close(handle)
        self.mapped[file] = True
        self._number += 1

    def is_mapped(self, file: int, path: Path) -> bool:
        """Whether it is this very file that is in its place: not one that was removed, or another since."""
        try:
            return bool(self.mapped[file]) and path.stat().st_ino == self._inode[file]
        except FileNotFoundError:
            return False

    def drop(self, file: int) -> None:
        """Empty the place of a mapped file: a removed one takes room on its disk until then."""
        assert self.mapped[file]
        self.mapped[file] = False
        self._number -= 1
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _FIXED | _NO_RESERVE
        _map(self.base + int(self.starts[file]), int(self.sizes[file]), 0, flags, -1)

    def bytes_of(self, file: int) -> memoryview:
        """The bytes of a mapped file; not to be kept longer than this object."""
        assert self.mapped[file]
        return self._view(int(self.starts[file]), int(self.sizes[file]))

    def records(self, size: int, step: int) -> NDArray[Any]:
        """Every run of `size` bytes that begins at a multiple of `step`, mapped or not, as one element; not to be kept
        longer than this object."""
        number = (self.bytes - size) // step + 1
        return np.ndarray(number, f"V{size}", buffer=self._view(0, self.bytes), strides=step)

    def _view(self, start: int, size: int) -> memoryview:
        return memoryview((ctypes.c_char * size).from_address(self.base + start)).cast("B")

    def _clear(self) -> None:
        """Nothing is mapped."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _FIXED
        _map(self.base, self.bytes, 0, flags | _NO_RESERVE, -1)
        _map(self.base, self._blank, mmap.PROT_READ, flags, -1)
        self.mapped[:] = False
        self._number = 0


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    number, size, pointer = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
    library.mmap.restype, library.mmap.argtypes = pointer, [pointer, size, number, number, number, ctypes.c_long]
    library.munmap.argtypes = [pointer, size]
    return library


def _map(address: int | None, size: int, protection: int, flags: int, handle: int) -> int:
    found: int = _library().mmap(address, size, protection, flags, handle, 0)
    if found == ctypes.c_void_p(-1).value:
        error = ctypes.get_errno()
        raise OSError(error, f"cannot map {size:,} bytes: {os.strerror(error)}")
    return found
