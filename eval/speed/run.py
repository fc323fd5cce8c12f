"""The speed scripts one after another, each in its short setting: their tables in ten minutes in all.

    python -m eval.speed.run [--only NAME ...]

Few rounds and small sizes: for whether something has become slower, not for numbers to be quoted; those are in
`eval/speed/results/`, each with the command that gave it. What a GPU gives has a script of its own: eval.speed.gpu.
"""

import argparse
import subprocess
import sys
import time

SHORT = {
    "splitting": ["--rounds", "1"],
    "training": ["--rounds", "1", "--rows", "resnet18"],
    "loader": ["--rounds", "1", "--pictures", "300", "--few", "100"],
    "scores": ["--rounds", "1", "--items", "4000", "--classes", "750", "--streamed", "100000", "--mapped", "20000"],
    "processes": ["--rounds", "1", "--counts", "1,4", "--kinds", "proxies"],
}
"""What every script is started with."""
LIMIT = 600
"""Seconds that all of them may take; each may take its share of what those before it have left."""


def main() -> None:
    """Print the tables; exit with 1 where a script has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=SHORT, default=list(SHORT), metavar="NAME", help=f"of {[*SHORT]}"
    )
    names, failed, ends = parser.parse_args().only, [], time.perf_counter() + LIMIT
    for number, name in enumerate(names):
        if not ran(name, (ends - time.perf_counter()) / (len(names) - number)):
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def ran(name: str, limit: float) -> bool:
    """Run a script, its output on ours, and return whether it came to its end within so many seconds."""
    command = [sys.executable, "-m", f"eval.speed.{name}", *SHORT[name]]
    print(f"\n## {name}\n", flush=True)
    started = time.perf_counter()
    try:
        code = subprocess.run(command, timeout=limit, check=False).returncode
    except subprocess.TimeoutExpired:
        print(f"ended after {limit:.3g} s", flush=True)
        return False
    print(f"\n{time.perf_counter() - started:.0f} s" + (f", exit code {code}" if code else ""), flush=True)
    return code == 0


if __name__ == "__main__":
    main()
