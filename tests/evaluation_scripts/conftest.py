"""The scripts of `eval/` are run in the root of the repository, and found from there."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
