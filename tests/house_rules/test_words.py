"""Calls that are dangerous, notes to ourselves and paths of one machine have no place in the project."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Written so that this file does not match itself.
FORBIDDEN_TEXT = {
    "a note to ourselves": re.compile(r"(?:#|//|<!--)\s*(?:TO[D]O|FIX[M]E|X[X]X|HA[C]K)\b"),
    "a path of one machine": re.compile(r"(?<![\w.~/-])/(?:work|root|home/\w+|Users/\w+)/"),
}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def project_files():
    """Return the files that git knows or would take, as they lie on disk."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, cwd=ROOT, check=True).stdout.decode()
    return [path for name in sorted(set(listed.split("\0")) - {""}) if (path := ROOT / name).is_file()]


def text_of(path):
    """Return a file's text, None for a binary file."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def forbidden_words(text):
    return [name for name, pattern in FORBIDDEN_TEXT.items() if pattern.search(text)]


def is_given(call, keyword, value):
    return any(
        given.arg == keyword and isinstance(given.value, ast.Constant) and given.value.value is value
        for given in call.keywords
    )


def is_round_trip(call):
    """Tell `pickle.loads(pickle.dumps(value))`, by which a test sends a value to another process, from a file."""
    return any(ast.unparse(given).startswith("pickle.dumps(") for given in call.args)


def forbidden_call(call):
    """Return what is wrong with one call, or None."""
    module, _, function = ast.unparse(call.func).rpartition(".")
    if module == "torch" and function == "load" and not is_given(call, "weights_only", True):
        return "torch.load needs weights_only=True"
    if module == "yaml" and function in {"load", "load_all", "unsafe_load", "full_load"}:
        return f"yaml.{function} builds objects: use ke_metric.recipe.yaml or yaml.safe_load"
    if module in UNPICKLERS and function in {"load", "loads", "open", "Unpickler"} and not is_round_trip(call):
        return f"{module}.{function} runs code from a file"
    if function == "load" and module in {"np", "numpy"} and not_refused(call, "allow_pickle"):
        return "np.load must not unpickle"
    return None


def not_refused(call, keyword):
    return any(given.arg == keyword for given in call.keywords) and not is_given(call, keyword, False)


def forbidden_code(source):
    """Return what is wrong with the calls and assignments of a Python file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (wrong := forbidden_call(node)):
            found.append(wrong)
        name = getattr(node, "attr", getattr(node, "id", ""))
        if name == "LOAD_TRUNCATED_IMAGES":
            found.append("LOAD_TRUNCATED_IMAGES turns broken files into wrong pictures")
        if isinstance(node, ast.Assign) and "MAX_IMAGE_PIXELS" in ast.unparse(node.targets[0]):
            found += ["MAX_IMAGE_PIXELS guards against decompression bombs"] * (ast.unparse(node.value) == "None")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(open(path), weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.full_load(text)",
        "pickle.load(file)",
        "pickle.loads(path.read_bytes())",
        "joblib.load(file)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=flag)",
        "ImageFile.LOAD_TRUNCATED_IMAGES = True",
        "Image.MAX_IMAGE_PIXELS = None",
    ],
)
def test_forbidden_code_would_be_seen(source):
    assert forbidden_code(source)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(open(path), map_location='cpu', weights_only=True)",
        "yaml.safe_load(text)",
        "np.load(path)",
        "np.load(path, allow_pickle=False)",
        "json.load(file)",
        "pickle.loads(pickle.dumps(source))",
        "Image.MAX_IMAGE_PIXELS = 1000",
        "text = 'torch.load(path)'",
    ],
)
def test_allowed_code_is_let_through(source):
    assert not forbidden_code(source)


@pytest.mark.parametrize("note", ["TO" + "DO", "FIX" + "ME: later", "XX" + "X"])
def test_notes_to_ourselves_would_be_seen(note):
    assert forbidden_words(f"x = 1  # {note}")
    assert not forbidden_words(f"x = 1  # no{note}")


@pytest.mark.parametrize("place", ["work", "root", "home/someone", "Users/someone"])
def test_paths_of_one_machine_would_be_seen(place):
    assert forbidden_words(f"open('/{place}/file')")
    assert not forbidden_words(f"https://example.org/{place}/file and our/{place}/file")


def test_nothing_forbidden_is_in_the_project():
    texts = {path.relative_to(ROOT).as_posix(): text_of(path) for path in project_files()}
    assert "ke_metric/recipe/schema.py" in texts
    found = {name: forbidden_words(text) for name, text in texts.items() if text is not None}
    for name, text in texts.items():
        if name.endswith(".py") and text is not None:
            found[name] += forbidden_code(text)
    assert not {name: wrong for name, wrong in found.items() if wrong}


def test_no_file_lies_in_a_folder_named_like_an_option():
    assert not [path for path in project_files() if path.relative_to(ROOT).parts[0].startswith("-")]
