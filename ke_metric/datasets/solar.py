"""Making the benchmark `solar`: the wheel that the solar cells are published in, fetched with pip and unpacked."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from ke_metric.datasets.prepare import PrepareReport, prepare
from ke_metric.disk import refuse_occupied
from ke_metric.errors import ExitCode, KeMetricError

# One version: the checksum of its wheel is among the published files.
PACKAGE = "elpv-dataset==1.0.0.post1"
FETCH_SECONDS = 1800
ELSEWHERE = (
    f"fetch the wheel elsewhere (python -m pip download --no-deps {PACKAGE}) and name it, or the folder that it lies "
    "in, with --from PATH"
)


def prepare_solar(target: Path, *, progress: Callable[[str], None] = lambda _: None) -> PrepareReport:
    """Fetch the published wheel, compare its checksum, unpack it and check what it holds; see `prepare`.

    Args:
        target: The data folder to make; may exist when it is empty.
        progress: Told in words what is being done, before every step that takes long.

    Raises:
        KeMetricError: There is no pip, or the disk is full (ENVIRONMENT); the wheel could not be fetched or is not
            the published one, or the target holds something (DATA). Nothing is left behind in either case.
    """
    refuse_occupied(target)
    with tempfile.TemporaryDirectory(prefix="ke-metric-solar-") as folder:
        progress(f"fetching {PACKAGE} with pip, 91 MB")
        fetch_wheel(PACKAGE, Path(folder))
        return prepare("solar", Path(folder), target=target, progress=progress)


def fetch_wheel(package: str, folder: Path) -> None:
    """Fetch the wheel of `name==version` into an existing folder, from where this machine's pip is set to look.

    Raises:
        KeMetricError: This Python has no pip (ENVIRONMENT), or the wheel could not be fetched (DATA).
    """
    if find_spec("pip") is None:
        raise KeMetricError(
            f"the pictures are fetched with pip, which {sys.executable} does not have; install it there, or "
            f"{ELSEWHERE}",
            ExitCode.ENVIRONMENT,
        )
    # A wheel alone: to look into a source archive pip would run what is in it.
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-qq",
        "--disable-pip-version-check", "--dest", str(folder), package,
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=FETCH_SECONDS, cwd=folder)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = str(error.stderr or "").strip() or str(error)
        raise KeMetricError(
            f"pip could not fetch {package}: {said}\nCheck the network and pip's index, or {ELSEWHERE}", ExitCode.DATA
        ) from error
