"""Does an installed wheel carry the presets and the assets, and find them far from any checkout?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megadistill.testing.synthetic_run import write_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_presets_and_init_work_from_a_wheel(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    made = subprocess.run([sys.executable, "-c", build, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    wheel = tmp_path / made.stdout.split()[-1]
    site = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        site,
        wheel,
    ]
    subprocess.run(pip, check=True, timeout=120)

    # the checkout must not be found: not as the working directory, not through an editable installation
    environ = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}

    def megadistill(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = "import megadistill, sys; print(megadistill.__file__); from megadistill.cli import main; main()"
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environ, timeout=120)

    listed = megadistill("presets")
    assert listed.returncode == 0, listed.stderr
    where, *lines = listed.stdout.splitlines()
    assert where.startswith(str(site))
    in_checkout = {p.relative_to(ROOT / "configs").as_posix() for p in (ROOT / "configs").rglob("*.yaml")}
    names = {name.removesuffix(".yaml") for name in in_checkout if not name.startswith("base/")}
    assert {line.split()[0] for line in lines} == names

    copied = megadistill("init", min(names), str(tmp_path / "mine.yaml"))
    assert copied.returncode == 0, copied.stderr
    checked = megadistill("validate", str(tmp_path / "mine.yaml"))
    assert checked.returncode == 0, checked.stderr
    twice = megadistill("init", min(names), str(tmp_path / "mine.yaml"))
    assert twice.returncode == 2
    assert "overwrites nothing" in twice.stderr
    assets = {p.relative_to(ROOT) for p in (ROOT / "megadistill" / "assets").rglob("*") if p.is_file()}
    assert all((site / path).exists() for path in assets)

    reported = megadistill("report", str(write_run(tmp_path, "run")))  # its page is made from files beside the code
    assert reported.returncode == 0, reported.stderr
