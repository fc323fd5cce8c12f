"""`ke-metric doctor`: exit codes, the document and the commands that are printed."""

import json

import pytest
from click.testing import CliRunner

from ke_metric.cli import doctor, main
from ke_metric.diagnosis.packages import Finding
from ke_metric.errors import ExitCode

OK = Finding("Python", "ok", "3.11")
ADVICE = Finding("extra timm", "advice", "not installed: timm", "pip install 'ke_metric[timm]'")
BROKEN = Finding("torch", "broken", "cannot be imported", "pip install --force-reinstall torch torchvision")


@pytest.mark.parametrize(
    ("findings", "code"), [([OK], 0), ([OK, ADVICE], 0), ([OK, ADVICE, BROKEN], ExitCode.ENVIRONMENT)]
)
def test_only_what_is_broken_gives_an_exit_code(monkeypatch, findings, code):
    monkeypatch.setattr(doctor, "diagnose", lambda lineages: findings)
    done = CliRunner().invoke(main, ["doctor", "--json"])
    assert done.exit_code == code
    document = json.loads(done.stdout)
    assert document["ok"] == (code == 0)
    assert [each["topic"] for each in document["findings"]] == [each.topic for each in findings]
    shown = CliRunner().invoke(main, ["doctor"])
    assert shown.exit_code == code
    assert all(each.cure in shown.stdout for each in findings)
    assert ("nothing is wrong" in shown.stdout) == (findings == [OK])
