"""index.faiss: a FAISS index derived from a gallery, and the record in the gallery by which it is known.

FAISS's readers are C++ that trusts what it reads. So a file is opened only if its SHA-256 is in the gallery's record;
that guards against damage, mixed up and half written files, not against somebody who can write the gallery itself.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import IO, Any

from ke_metric.disk import reach_disk
from ke_metric.evaluation.backend import load_faiss
from ke_metric.stores.faiss_index import Copies
from ke_metric.stores.gallery import Gallery
from ke_metric.stores.gallery_files import disk_error

NAME = "index.faiss"
TEMPORARY = f".writing-{NAME}"
FACT = "index.faiss"


@dataclass(frozen=True)
class Record:
    """What the gallery says of index.faiss.

    Attributes:
        factory: FAISS's name of its kind.
        rows: It covers rows 0 to before this one, but for those that were holes when it was built.
        trained: Number of items when it was built anew, and trained if its kind needs that.
        nbytes: Its length.
        sha256: Of its bytes.
        copies: Of a graph: how many rows it leaves out, because an equal vector is linked; they follow the index in
            its file. None: it was made before equal vectors were linked once, and may hold some.
    """

    factory: str
    rows: int
    trained: int
    nbytes: int
    sha256: str
    copies: int | None = None


@dataclass(frozen=True, eq=False)
class Derived:
    """FAISS's object, whose ids are rows, as it was read or built; the record of its file; what it leaves out."""

    index: Any
    record: Record
    copies: Copies


def read_records(gallery: Gallery) -> tuple[Record, ...]:
    """Return the records of index.faiss, newest first: several while it is replaced, none where there is none."""
    text = gallery.fact(FACT)
    return () if text is None else tuple(Record(**fields) for fields in json.loads(text))


def load_derived(gallery: Gallery) -> tuple[Derived | None, str]:
    """Read index.faiss; return None, and why, where that cannot be done."""
    records = read_records(gallery)
    while True:
        derived, reason = _load(gallery, records)
        newer = read_records(gallery)
        # A writer may have replaced the file after its record was read.
        if derived is not None or newer == records:
            return derived, reason
        records = newer


def _load(gallery: Gallery, records: tuple[Record, ...]) -> tuple[Derived | None, str]:
    path = gallery.folder / NAME
    if not records:
        return None, f"there is no {NAME} yet"
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            for record in records:
                if record.sha256 == digest:
                    file.seek(0)
                    # The very file that was checked, whatever has its name by now.
                    index = load_faiss().read_index(load_faiss().PyCallbackIOReader(file.read))
                    return Derived(index, record, Copies.from_bytes(file.read())), ""
    except FileNotFoundError:
        return None, f"{path} is missing"
    except OSError as error:
        raise disk_error(path, error) from error
    except RuntimeError as error:  # whole, but written by a FAISS that knows more kinds or another format
        return None, f"{path} cannot be read by this version of FAISS: {' '.join(str(error).split())[:200]}"
    return None, f"{path} is damaged, or of another gallery: it is not the file that the gallery's record tells of"


def save_derived(gallery: Gallery, index: Any, factory: str, *, rows: int, trained: int, copies: Copies) -> Derived:
    """Replace index.faiss as a whole; killed at any moment, the old or the new one is there and has its record.

    Raises:
        KeMetricError: ENVIRONMENT: the disk is full or cannot be written; the file is as it was.
    """
    temporary = gallery.folder / TEMPORARY
    try:
        with temporary.open("wb") as file:
            sink = _Sink(file)
            load_faiss().write_index(index, load_faiss().PyCallbackIOWriter(sink.write))
            sink.write(copies.to_bytes())
            file.flush()
        reach_disk(temporary)
        record = Record(factory, rows, trained, sink.nbytes, sink.hash.hexdigest(), len(copies))
        # All of them: which one the file has that is there now, after a kill, its name does not say.
        _write_records(gallery, (record, *read_records(gallery)))
        temporary.replace(gallery.folder / NAME)
        reach_disk(gallery.folder)
    except OSError as error:
        raise disk_error(gallery.folder / NAME, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    _write_records(gallery, (record,))
    return Derived(index, record, copies)


def record_no_copies(gallery: Gallery) -> None:
    """Have the record say that index.faiss, made before equal vectors were linked once, holds none."""
    _write_records(gallery, tuple(replace(record, copies=0) for record in read_records(gallery)))


def _write_records(gallery: Gallery, records: tuple[Record, ...]) -> None:
    gallery.set_fact(FACT, json.dumps([asdict(record) for record in records]))


class _Sink:
    """Writes to a file, and remembers length and hash of what it wrote."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.nbytes = 0

    def write(self, part: bytes) -> None:
        self._file.write(part)
        self.hash.update(part)
        self.nbytes += len(part)
