"""One rank of test_sharded: the head losses of its slice of the vocabulary."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from megadistill.kernels.head_losses import Hard, Projection, Soft, blocks, sharded_head_losses
from megadistill.testing.heads import case, gradients

TERMS = [Soft(2.0), Hard(0.1), Soft(1.0)]
CASES = {
    "all real": (102, None),
    "the last one is padding": (101, 101),
    "half a rank is padding": (80, 80),
    "a rank is padding": (51, 51),
    "a rank and a half are padding": (26, 26),
}
SIZE, ROWS, BLOCK = 51, 17, 7


def slice_of(head, rank):
    """A rank's rows of a head; those past its end would win every softmax, were they anything but -inf."""
    short = 2 * SIZE - head.weight.shape[0]
    weight = torch.cat([head.weight, torch.full((short, head.weight.shape[1]), 3.0)])
    bias = torch.cat([head.bias, torch.full((short,), 50.0)])
    part = slice(rank * SIZE, (rank + 1) * SIZE)
    return Projection(head.hidden, weight[part], bias[part])


def main():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    blocks.block_rows = lambda num_rows, *_: (min(BLOCK, num_rows),) * 3
    gather, found = dist.all_gather, {}
    gathered = []

    def counted(*arguments, **options):
        gathered.append(arguments[1].shape)
        return gather(*arguments, **options)

    dist.all_gather = counted
    for name, (size, vocabulary) in CASES.items():
        given = case(ROWS, size, len(TERMS)).to(torch.float32)
        gathered.clear()
        losses = []

        def fn(student, given=given, losses=losses, vocabulary=vocabulary):
            teacher = slice_of(given.teachers[0], rank)
            total, each = sharded_head_losses(
                student, TERMS, given.coefficients, given.labels, teacher, vocabulary=vocabulary
            )
            losses.append(each)
            return total

        value, (hidden, weight, bias) = gradients(fn, slice_of(given.student, rank))
        found[name] = {"value": value, "losses": losses[0], "hidden": hidden, "weight": weight, "bias": bias,
                       "gathered": list(gathered)}  # fmt: skip
    torch.save(found, Path(sys.argv[1]) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
