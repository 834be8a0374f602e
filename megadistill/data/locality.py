"""Does what a step reads fit near by, where shards are copied from a shared file system or an object store?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from megadistill.core.errors import UserError
from megadistill.data.config import DataConfig
from megadistill.data.index import Table
from megadistill.data.order import Blocks


def check_locality(config: DataConfig, tables: Mapping[str, Table]) -> None:
    """A corpus that does not fit near by must be read block by block, and windows of blocks must fit.

    Args:
        tables: the training shards of each corpus.

    Raises:
        UserError: one of these corpora does not.
    """
    staging = config.read.staging
    if staging is None:
        return
    for corpus, table in tables.items():
        total = int(table.bytes.sum())
        if config.order == "global" and total > staging.max_bytes:
            raise UserError(
                f"corpus {corpus} is larger than data.read.staging: max_gigabytes",
                f"{total / 1e9:,.1f} GB, and data.order is global: every step needs all of it",
                "set data.order: block (before the run starts), or a larger max_gigabytes",
            )
        needed = near_bytes(table, config.blocks)
        if config.order == "block" and needed > staging.max_bytes:
            raise UserError(
                f"corpus {corpus}: a window of blocks does not fit into data.read.staging: max_gigabytes",
                f"whole shards are copied: those of {config.blocks.window} blocks of {config.blocks.rows:,} rows, and "
                f"of the window after it, are {needed / 1e9:,.2f} of {total / 1e9:,.2f} GB",
                "set a smaller data.blocks: window (before the run starts), or a larger max_gigabytes",
            )


def near_bytes(table: Table, blocks: Blocks) -> int:
    """Bytes of the shards that must be near for none to be copied twice in a window: those that a window's blocks
    reach into, on average, and those of the next, which are fetched before the window ends; one more for chance."""
    rows = np.diff(table.first_row)
    reached = np.minimum(1, blocks.window * (rows + blocks.rows - 1) / max(1, int(rows.sum())))
    largest = int(table.bytes.max(initial=0))
    return min(int(table.bytes.sum()), 2 * int((reached * table.bytes).sum()) + largest)
