"""What every part of the record stands on: pictures, recipes, the command line, values without what changes.

A part is a function without arguments that runs in the folder which `make_world` has filled, and returns JSON. All
paths are relative to that folder, because the digest of a recipe includes where its pictures lie.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image

from ke_metric.cli import main

PROJECT = Path(__file__).resolve().parents[2]
CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibex", "jay")
PICTURES_PER_CLASS = 8

RECIPE = """
generations: 2
keep: all
data: {benchmark: folder, root: pictures, image_size: 24, store_size: 24}
augmentation: {scale: [0.6, 1.0]}
network: {backbone: timm/test_efficientnet, embedding_size: 8}
loss: {name: MultiSimilarityLoss}
batches: {size: 8, images_per_class: 2}
optimizer: {name: sgd, learning_rate: 0.005}
training: {epochs: 1, precision: fp32}
evaluation: {resize: 24, recall_at: [1, 2, 4], backend: torch, kmeans_seeds: 1}
"""
CLASSES_RECIPE = """
task: classification
generations: 2
keep: all
data: {benchmark: folder, root: pictures, image_size: 24, store_size: 24}
augmentation: {geometry: affine, scale: [0.9, 1.1], rotation: 10, brightness: 0.1}
network: {backbone: timm/test_efficientnet}
loss: {name: CrossEntropyLoss, arguments: {label_smoothing: 0.1}}
batches: {sampler: shuffled, size: 8}
optimizer: {name: sgd, learning_rate: 0.02}
training: {epochs: 2, precision: fp32}
evaluation: {resize: 24}
"""

# What a run depends on but the code does not: when, where and with what it ran, and how long it took.
VOLATILE = frozenset(
    {
        "time",
        "created",
        "command",
        "environment",
        "versions",
        "seconds",
        "seconds_per_step",
        "commit",
        "commit_changed",
    }
    | {"python", "system", "machine", "processor", "cores", "device_name", "queries_per_second", "processor_name"}
    | {"estimated_training_seconds", "milliseconds", "images_per_second", "threads"}
)
CLOCK = re.compile(r"\b\d+:\d\d(?::\d\d)?\b(?!:)")
# How many facts fit into the line of an epoch depends on how long the times in it are; that of a step comes when much
# time has passed.
PROGRESS = re.compile(r"^(generation \d+/\d+ epoch \d+ (?:done  loss \S+|step)).*$", re.MULTILINE)
SHARES = re.compile(r"(took <clock>, )\S+( % of it for lineage and split).*?\S+( % for slim)")
SPEED = re.compile(r"^.*(?:seconds per step|estimated|│ bytes ).*$", re.MULTILINE)
EVENTS = re.compile(r"events\.out\.tfevents\S*")


def make_world() -> None:
    """Write the pictures and recipes into the current folder."""
    for number, name in enumerate(CLASSES):
        for picture in range(PICTURES_PER_CLASS):
            # BMP files hold the pixels as they are: their bytes are those of every version of Pillow.
            save(drawing(number, picture), Path("pictures", name, f"{picture}.bmp"))
    for picture in range(3):
        save(drawing(2, 100 + picture), Path("queries", "cat", f"new{picture}.bmp"))
    _make_odd_pictures(Path("odd"))
    rows = [f"pictures/{name}/{picture}.bmp,{name}" for name in CLASSES[:4] for picture in range(3)]
    Path("list.csv").write_text("path,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    Path("files.csv").write_text("file;kind\npictures/ant/0.bmp;ant\npictures/bee/1.bmp;bee\n", encoding="utf-8")
    split = [f"pictures/{name}/{n}.bmp,{name},{'train' if n < 4 else 'test'}" for name in CLASSES for n in range(8)]
    Path("parts.csv").write_text("path,label,split\n" + "\n".join(split) + "\n", encoding="utf-8")
    halves = [
        f"pictures/{name}/{n}.bmp,{name},{'test' if name > 'f' else 'train'}" for name in CLASSES for n in range(6)
    ]
    Path("halves.csv").write_text("path,label,split\n" + "\n".join(halves) + "\n", encoding="utf-8")
    Path("base.yaml").write_text(RECIPE, encoding="utf-8")
    Path("classes.yaml").write_text(CLASSES_RECIPE, encoding="utf-8")


def drawing(number: int, picture: int) -> Image.Image:
    """Return stripes whose colour and width are those of the class, with noise of their own."""
    stream = np.random.default_rng(1000 * number + picture)
    colour = np.array([40 + 20 * number, 220 - 20 * number, 37 * number % 256])
    y, x = np.mgrid[:24, :24]
    stripes = ((x * (number % 3) + y * (number % 2 + 1) + picture) // (2 + number % 4)) % 2
    pixels = colour * (0.4 + 0.6 * stripes[..., None]) + stream.integers(-60, 61, (24, 24, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def save(image: Image.Image, path: Path, **options: object) -> None:
    """Write a picture and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def _make_odd_pictures(folder: Path) -> None:
    """Write what needs care: transparency, a photograph on its side, few colours, a copy, what cannot be read."""
    clear = drawing(3, 50).convert("RGBA")
    clear.putalpha(Image.fromarray(np.arange(576, dtype=np.uint16).reshape(24, 24).astype(np.uint8), "L"))
    save(clear, folder / "dog" / "clear.png", compress_level=0)
    turned = Image.Exif()
    turned[0x0112] = 6
    save(drawing(1, 51).resize((36, 24)), folder / "bee" / "turned.jpg", exif=turned)
    save(drawing(4, 52).convert("L"), folder / "eel" / "grey.bmp")
    save(drawing(5, 53).convert("P"), folder / "fox" / "palette.bmp")
    save(drawing(0, 0), folder / "fox" / "copy.bmp")
    save(drawing(0, 0), folder / "ant" / "copy.bmp")
    (folder / "ant" / "broken.bmp").write_bytes(b"BM no picture")
    (folder / "ant" / "notes.txt").write_text("no picture either", encoding="utf-8")


def call(*words: object) -> dict:
    """Run a command, and return its exit code, what it printed and what it said."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    answer = {"exit": int(result.exit_code)}
    try:
        answer["json"] = cleaned(json.loads(result.stdout))
    except json.JSONDecodeError:
        answer["table"] = plain(result.stdout).splitlines()
    # Whether a line that was overwritten leaves an empty one behind depends on the library that draws it.
    said = [line for line in plain(result.stderr).splitlines() if line.strip() and not line.endswith(" step")]
    return answer | {"stderr": said}


def must(*words: object) -> dict:
    """Run a command whose failure would make the rest of the record meaningless."""
    answer = call(*words)
    if answer["exit"] != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {answer}")
    return answer


def plain(text: str) -> str:
    """Return a text without the folder it speaks of, and without times."""
    text = text.replace(str(Path.cwd()), "<here>").replace(str(PROJECT), "<project>")
    clocked = CLOCK.sub("<clock>", SPEED.sub("", PROGRESS.sub(r"\1", text)))
    return EVENTS.sub("<events>", SHARES.sub(r"\1<share>\2, <share>\3", clocked))


def cleaned(value: object) -> object:
    """Return JSON in which what is volatile is named, but not told."""
    if isinstance(value, dict):
        return {plain(name): _cleaned_field(name, field) for name, field in value.items()}
    if isinstance(value, list):
        return [cleaned(entry) for entry in value]
    return plain(value) if isinstance(value, str) else value


def _cleaned_field(name: str, field: object) -> object:
    if name in VOLATILE:
        return "<volatile>"
    if name == "magnitudes" and field:
        numbers = [number for pair in field.values() for number in pair if number is not None]
        text = json.dumps(field)
        return {"names": digest("".join(field)), "sum": sum(numbers), "all": bits(text)}
    return cleaned(field)


def digest(content: str | bytes) -> str:
    """Return a digest of what must be the same on every machine."""
    return "sha256:" + _sha256(content)


def bits(content: str | bytes) -> str:
    """Return a digest of what a machine has calculated: other kernels give other last bits."""
    return "bits:" + _sha256(content)


def _sha256(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:32]


def described(path: Path) -> object:
    """Return what a file holds, as JSON where it is text and as digests where it is numbers."""
    if path.suffix in (".npy", ".f32", ".faiss"):
        return {"bytes": path.stat().st_size, "content": bits(path.read_bytes())}
    if path.suffix == ".safetensors":
        return _tensors(path.read_bytes())
    text = path.read_text(encoding="utf-8")
    if path.name != "split.json" and path.suffix in (".json", ".jsonl"):
        return _facts(path.name, text)
    return digest(plain(text))


def _facts(name: str, text: str) -> object:
    """Return the JSON of a file, with digests in place of what is long."""
    if name.endswith(".jsonl"):
        lines = [cleaned(json.loads(line)) for line in text.splitlines()]
        is_log = name == "log.jsonl"
        return {"events": [line["event"] for line in lines], "content": bits(json.dumps(lines))} if is_log else lines
    facts = cleaned(json.loads(text))
    if name == "data.json":
        return _fingerprint(facts)
    if name == "config.json":
        return facts | {"settings": digest(json.dumps(facts["settings"]))}
    return facts


def _fingerprint(facts: dict) -> dict:
    """Return a fingerprint of data with a digest in place of every long list."""
    parts = {
        name: {field: value if field == "class_names" else digest(json.dumps(value)) for field, value in part.items()}
        for name, part in facts["parts"].items()
    }
    return facts | {"parts": parts}


def _tensors(content: bytes) -> dict:
    """Return the names and shapes of a safetensors file, its metadata and its numbers."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", None)
    layout = {"count": len(header), "layout": digest(json.dumps(header)), "content": bits(content[8 + length :])}
    return layout | ({} if metadata is None else {"metadata": cleaned(metadata)})


def contents(folder: Path) -> dict:
    """Return every file below a folder; what only a clock or a database orders is named without its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = plain(path.relative_to(folder).as_posix())
            silent = path.suffix in (".sqlite", ".db", ".lock", ".pt2", ".onnx") or "tfevents" in path.name
            found[name] = "<not read>" if silent else described(path)
    return found


def to_text(value: object, indent: str = "") -> str:
    """Return JSON in which what is short stays on one line."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, dict | list) or len(line) + len(indent) <= 110:
        return line
    inner = indent + " "
    if isinstance(value, list):
        entries = [to_text(entry, inner) for entry in value]
    else:
        entries = [
            f"{json.dumps(name, ensure_ascii=False)}: {to_text(entry, inner)}" for name, entry in value.items()
        ]
    ends = "[]" if isinstance(value, list) else "{}"
    return f"{ends[0]}\n{inner}" + f",\n{inner}".join(entries) + f"\n{indent}{ends[1]}"
