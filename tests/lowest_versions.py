"""Print the lowest version of every library that setup.py allows, as constraints for pip (`make test-lowest`)."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lowest_versions(source):
    """Return `name==version` for every `name>=version` that a setup.py lists."""
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    bounds = [re.match(r"([\w.-]+)(?:\[\w+\])?>=([\w.]+)", text) for text in texts if isinstance(text, str)]
    # python_requires begins with >= and has no name; setuptools belongs to the build, not to the environment.
    return sorted({f"{bound[1]}=={bound[2]}" for bound in bounds if bound})


if __name__ == "__main__":
    sys.stdout.write("\n".join(lowest_versions((ROOT / "setup.py").read_text(encoding="utf-8"))) + "\n")
