"""Is the report whole and readable in a real browser, on a wide and a narrow screen, by day and by night?

Pictures of every page are left where MEGADISTILL_PICTURES says, for whoever wants to look.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from megadistill.data.prepare import prepare
from megadistill.evaluate.scores import evaluate
from megadistill.report.html import report
from megadistill.report.models import TASKS
from megadistill.run.config import load
from megadistill.testing import processes, workspace
from megadistill.testing.browser import browser, missing
from megadistill.testing.synthetic_run import write_run

WIDTHS, SCHEMES = (1280, 390), ("light", "dark")
SMALLEST = 11
"""Pixels of a letter's height, as rendered."""
CONTRAST = 4.5
"""Of text to what is behind it (WCAG 2.2, 1.4.3)."""

TEXTS = """
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
function rgba(text) {
  context.clearRect(0, 0, 1, 1); context.fillStyle = text; context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data];
}
function behind(element) {
  for (let e = element; e; e = e.parentElement) {
    const color = rgba(getComputedStyle(e).backgroundColor);
    if (color[3] === 255) return color;
  }
  return rgba('white');
}
function light(color) {
  const [r, g, b] = color.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, style = getComputedStyle(element);
  const box = element.getBoundingClientRect();
  if (!walker.currentNode.data.trim() || style.visibility === 'hidden' || !element.checkVisibility()) continue;
  if (['STYLE', 'TITLE', 'title'].includes(element.tagName)) continue;
  const drawn = element.closest('svg');  // its units may be scaled
  const scale = drawn ? box.height / element.getBBox().height : 1;
  const [a, b] = [light(rgba(style.color)), light(behind(element))].sort((x, y) => y - x);
  const text = walker.currentNode.data.trim().slice(0, 40);
  found.push([text, parseFloat(style.fontSize) * scale, (a + 0.05) / (b + 0.05)]);
}
return found;
"""
PLOTS = """
return [...document.querySelectorAll('.plot')].map(plot => {
  const frame = plot.querySelector('svg').getBoundingClientRect();
  const marks = [...plot.querySelectorAll('.line, .dot, .bar')]
    .map(mark => [mark.getBoundingClientRect(), getComputedStyle(mark)]);
  const seen = marks.filter(([box, style]) =>
    Math.max(box.width, box.height, parseFloat(style.strokeWidth)) > 1
    && box.left >= frame.left - 4 && box.right <= frame.right + 4
    && box.top >= frame.top - 4 && box.bottom <= frame.bottom + 4
    && [style.stroke, style.fill].some(paint => !['none', 'rgba(0, 0, 0, 0)'].includes(paint)));
  return [plot.getAttribute('aria-label'), frame.width, frame.height, marks.length, seen.length];
});
"""
OVERLAPS = """
const found = [];
for (const axis of document.querySelectorAll('.plot .x, .plot .y')) {
  const boxes = [...axis.querySelectorAll('span')].map(s => [s.textContent, s.getBoundingClientRect()]);
  for (let i = 0; i < boxes.length; i++) for (let j = 0; j < i; j++) {
    const [a, b] = [boxes[i][1], boxes[j][1]];
    if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
      found.push([axis.parentElement.getAttribute('aria-label'), boxes[j][0], boxes[i][0]]);
  }
}
return found;
"""


@pytest.fixture(scope="module")
def tab():
    if why := missing():
        pytest.skip(f"no Chromium: {why}")
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports of real runs, evaluated; and of one that was killed, fell and rose, beside its rivals."""
    folder = tmp_path_factory.mktemp("real")
    config = workspace.make(folder)
    prepare(load(config).text, lambda line: None)
    runs = [folder / "runs" / name for name in ("tiny", "plain")]
    for changes in ((), ("name=plain", "objectives=[{kind: hard_ce}]", "evaluate.every_steps=3")):
        done = processes.megadistill("train", config, *changes)
        assert done.returncode == 0, done.stdout + done.stderr
    for run in runs:
        evaluate(run)
    (runs[0] / "evaluation" / "tasks").mkdir()
    for folder_of, lower in ((runs[0] / "evaluation" / "tasks", 0.0), (folder / "a teacher of a long name", 0.04)):
        folder_of.mkdir(exist_ok=True)
        (folder_of / "summary.json").write_text(json.dumps(task_scores(lower)))
    speed = {"num_parameters": 28_763_648, "seconds_batch_1": 61.25, "threads": 2, "num_rows": 1500}
    (folder_of / "speed.json").write_text(json.dumps(speed))
    (runs[0] / "evaluation" / "speed.json").write_text(json.dumps(speed | {"seconds_batch_1": 25.5}))
    many = [write_run(folder / "many", f"arm{n}-seed{seed}", offset=n / 9) for n in range(7) for seed in (1, 2)]
    for place, run in enumerate(many):
        config = json.loads((run / "config.resolved.yaml").read_text())
        config["objectives"][0]["weight"] += place // 2
        (run / "config.resolved.yaml").write_text(json.dumps(config))
    with (many[0] / "journal.jsonl").open("a") as journal:
        journal.write(json.dumps({"event": "nonfinite", "attempt": 2, "step": 7, "why": "x" * 400}) + "\n")
    scored = report(runs[:1], folder / "scored.html", teacher=folder_of)
    return {"one": report(runs[:1]), "two": report(runs), "many": report(many), "scored": scored}


def task_scores(lower):
    """As `evaluate --tasks` leaves them, of every task."""
    found = {task: {"median": 0.91 - lower, "scores": [0.909 - lower, 0.91 - lower, 0.915 - lower]} for task in TASKS}
    found["cola"] = {"median": -0.01, "scores": [-0.02, -0.01, 0.04]}
    found["mnli"] |= {"dev_matched/accuracy": 0.912, "dev_mismatched/accuracy": 0.908}
    found["squad"] = {"median": 85.8, "scores": [85.8], "dev/exact_match": 77.7, "dev/f1": 85.8}
    return {**found, "macro": 0.8, "macro_without_wnli": 0.81, "missing_of_glue": []}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["one", "two", "many", "scored"])
def test_a_report_is_whole_and_readable(tab, pages, name, width, scheme):
    tab.show(pages[name], width, scheme)
    if folder := os.environ.get("MEGADISTILL_PICTURES"):
        (Path(folder) / f"{name}-{width}-{scheme}.png").write_bytes(tab.picture())
    assert tab.ask("return [innerWidth, matchMedia('(prefers-color-scheme: dark)').matches]") == [
        width,
        scheme == "dark",
    ]
    for opened in (False, True):
        tab.ask(f"document.querySelectorAll('details').forEach(d => d.open = {json.dumps(opened)})")
        assert tab.ask("return document.scrollingElement.scrollWidth") <= width
        texts = tab.ask(TEXTS)
        assert len(texts) > 100
        assert [text for text in texts if text[1] < SMALLEST] == []
        assert [text for text in texts if text[2] < CONTRAST] == []
    plots = tab.ask(PLOTS)
    assert len(plots) >= 9
    for label, wide, high, marks, seen in plots:
        assert wide > 200, label
        assert high >= 30, label
        assert marks == seen > 0, label
    assert tab.ask(OVERLAPS) == []
    assert tab.complaints() == []


def test_the_checks_notice_what_they_look_for(tab, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<body style='background: white'><div style='width: 2000px; font-size: 9px; color: #bbb'>too small, too pale"
        "</div><svg width=50 height=50 viewBox='0 0 500 500'><text y=100 font-size=20>shrunk</text></svg>"
        "<div class=plot aria-label=empty><svg></svg><div class=x><span>10</span><span style='margin-left:-1em'>20"
        "</span></div></div><script>console.error('oh')</script>"
    )
    tab.show(page, 390, "light")
    assert tab.ask("return document.scrollingElement.scrollWidth") > 390
    texts = {text: (size, contrast) for text, size, contrast in tab.ask(TEXTS)}
    assert texts["too small, too pale"][0] == 9
    assert texts["too small, too pale"][1] < 2
    assert texts["shrunk"][0] == pytest.approx(2, rel=0.2)
    assert [plot[3:] for plot in tab.ask(PLOTS)] == [[0, 0]]
    assert tab.ask(OVERLAPS) == [["empty", "10", "20"]]
    assert any("oh" in line for line in tab.complaints())
