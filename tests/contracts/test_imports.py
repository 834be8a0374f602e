"""Does importing anything stay silent, free of effects, and free of the slow libraries?"""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import megadistill

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(megadistill.__path__, "megadistill.")
    if not module.name.endswith("__main__")
)
PROBE = """
import importlib, json, os, sys, threading
before = dict(os.environ), os.getcwd(), threading.active_count()
for name in sys.argv[1:]:
    importlib.import_module(name)
after = dict(os.environ), os.getcwd(), threading.active_count()
import torch
print(json.dumps({"modules": list(sys.modules), "unchanged": before == after,
                  "connected": torch.distributed.is_initialized()}))
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environ)


def test_all_modules_import_silently_and_without_the_slow_libraries() -> None:
    """Their owners import transformers, deepspeed and datasets where they use them: `validate` is quick."""
    assert len(MODULES) > 40
    result = python(PROBE, *MODULES)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    told = json.loads(result.stdout)  # one line: nothing else was printed
    assert told["unchanged"]
    assert not told["connected"]
    assert not {"transformers", "deepspeed", "datasets", "webdataset"} & set(told["modules"])


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["presets"]])
def test_help_loads_neither_torch_nor_transformers(arguments: list[str]) -> None:
    code = """
import sys
from megadistill.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
loaded = {"torch", "transformers", "deepspeed", "numpy", "pydantic"} & set(sys.modules)
assert not loaded - {"pydantic"}, loaded
"""
    result = python(code, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout
