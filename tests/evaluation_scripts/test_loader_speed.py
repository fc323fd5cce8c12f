"""The script that times the loader runs, on next to nothing, and says what it measured."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="keeps to one core")
def test_the_loader_is_timed(tmp_path):
    results = tmp_path / "results.md"
    command = [sys.executable, "-m", "eval.speed.loader", "--rounds", "1", "--pictures", "60", "--few", "16"]
    done = subprocess.run(
        [*command, "--results", results], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    text = results.read_text(encoding="utf-8")
    assert text in done.stdout
    rows = [line for line in text.splitlines() if line.startswith(("| crop", "| affine", "| second"))]
    assert len(rows) == 28
    assert all(line.count("|") == 8 for line in rows)
    targets = [line.split("|")[6].strip() for line in rows]
    expected = [">= 6", ">= 6", ">= 25", ">= 25", *[">= 1.5"] * 4, "<= 0.2", "<= 0.2"]
    assert [target for target in targets if target] == expected
