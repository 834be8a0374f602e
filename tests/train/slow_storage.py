"""A storage that never takes all of a checkpoint: a plugin for test_mirror."""

import time

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Slow(LocalFileSystem):
    """Of the last file of step 2, for longer than any test."""

    protocol = "slow"

    def put_file(self, here, there, **options):
        if "step-00000002" in here and here.endswith("MANIFEST.json"):
            time.sleep(600)
        super().put_file(here, there, **options)


fsspec.register_implementation("slow", Slow)
