"""What the tasks of a real Slurm job array prepare together has the bytes of what one process prepares alone."""

from pathlib import Path

import pytest

from megadistill.core.files import sha256_file
from megadistill.data.prepare import prepare
from megadistill.run.config import load
from megadistill.testing import workspace

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def tree(folder):
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_array_tasks_prepare_their_shares_and_the_last_one_finishes(cluster, tmp_path):
    config, text = workspace.make(tmp_path), workspace.text()
    for number in range(5):  # a task each: blanks bring them over the size up to which files are read together
        paragraphs = "\n\n".join(text[60 * number : 60 * number + 80])
        (tmp_path / f"{number}.txt").write_text(paragraphs + "\n" + " " * 4_000_000)
    corpora = f"data.corpora=[{{kind: text, files: ['{tmp_path}/[0-9].txt']}}]"
    alone = prepare(load(config, [corpora, f"data.dir={tmp_path / 'alone'}"]).data, lambda line: None, workers=1)
    assert alone.corpora[0].duplicates > 0

    options = ["--array=1-5:2", "--cpus-per-task=1", "--mem-per-cpu=1", "--chdir", str(ROOT)]
    options += ["--output", str(tmp_path / "log-%a")]
    job = cluster.submit(ROOT / "slurm" / "prepare.sbatch", str(config), corpora, options=options)
    cluster.wait(lambda: not cluster.command("squeue", "-h", "--job", job, check=False).strip(), 180)
    logs = [(tmp_path / f"log-{task}").read_text() for task in (1, 3, 5)]
    assert all("text: reading" in log for log in logs), logs
    assert sum("rows, " in log for log in logs) == 1, logs
    assert tree(tmp_path / "prepared" / "text") == tree(tmp_path / "alone" / "text")
