"""Does the doctor tell what is broken from what is merely worth knowing?"""

from __future__ import annotations

import pytest

from megadistill.doctor import machine
from megadistill.doctor.checks import Finding, Section, broken, table


def test_the_table_shows_verdicts_and_advice() -> None:
    sections = [
        Section("tools", [Finding("gcc", "12.2"), Finding("ninja", "not on PATH", "broken", "install it")]),
        Section("disk", [Finding("here", "1.0 GB free", "note")]),
    ]
    text = table(sections)
    assert "X ninja  not on PATH" in text
    assert "-> install it" in text
    assert "! here" in text
    assert text.endswith("1 thing(s) broken (X)")
    assert [finding.name for finding in broken(sections)] == ["ninja"]


@pytest.mark.parametrize("look", [machine.processor, machine.accelerators, machine.disk, machine.hub, machine.slurm])
def test_looking_at_this_machine_finds_something_and_breaks_nothing(look) -> None:
    findings = look()
    assert findings
    assert not [finding for finding in findings if finding.verdict == "broken"]


def test_two_processes_meet() -> None:
    assert "formed a group" in machine.processes()[0].value


def test_a_network_interface_that_is_not_there_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    finding = machine.processes()[0]
    assert finding.verdict == "broken"
    assert "GLOO_SOCKET_IFNAME" in finding.advice


def test_slurm_variables_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert "4711" in machine.slurm()[-1].value
