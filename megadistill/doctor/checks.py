"""Whether this machine is fit for a run: what was looked at, what was found, what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    value: str
    verdict: Literal["fine", "note", "broken"] = "fine"
    """note: works, and may surprise. broken: training cannot work."""
    advice: str = ""


@dataclass(frozen=True)
class Section:
    """The findings of one subject."""

    title: str
    findings: Sequence[Finding]


def examine() -> list[Section]:
    """Look at everything; nothing is changed, and two short-lived processes try to talk to each other."""
    from megadistill.doctor import machine, software

    return [
        Section("software", software.packages()),
        Section("tools", software.tools()),
        Section("processor", machine.processor()),
        Section("accelerators", machine.accelerators()),
        Section("processes", machine.processes()),
        Section("disk", machine.disk()),
        Section("network and hub", machine.hub()),
        Section("slurm", machine.slurm()),
    ]


def broken(sections: Sequence[Section]) -> list[Finding]:
    """What training cannot work with."""
    return [finding for section in sections for finding in section.findings if finding.verdict == "broken"]


def table(sections: Sequence[Section]) -> str:
    """All findings as text that can be pasted into an issue."""
    signs = {"fine": " ", "note": "!", "broken": "X"}
    width = max(len(finding.name) for section in sections for finding in section.findings)
    lines = []
    for section in sections:
        lines.append(section.title)
        for finding in section.findings:
            lines.append(f"{signs[finding.verdict]} {finding.name:<{width}}  {finding.value}")
            if finding.advice:
                lines.append(f"  {'':<{width}}  -> {finding.advice}")
    count = len(broken(sections))
    lines.append(f"{count} thing(s) broken (X)" if count else "nothing that training needs is broken")
    return "\n".join(lines)
