"""What index.json says of an index; never trusted: a closed schema, checked when it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.networks.description import Sha256, installed_versions
from ke_metric.recipe_problems import dotted, shown
from ke_metric.recipe_section import Section
from ke_metric.retrieval.store_settings import StoreSettings

MANIFEST = "index.json"
FORMAT_VERSION: Literal[1] = 1


class Manifest(Section):
    """What index.json says."""

    format_version: Literal[1] = FORMAT_VERSION
    digest: Sha256
    """Of the embedder that made the vectors."""
    dimension: int = Field(ge=1)
    """Length D of the vectors."""
    description: str
    """Where that embedder came from, in words."""
    store: StoreSettings
    versions: dict[str, str] = Field(default_factory=installed_versions)
    """Of what made the index; for people."""

    def to_json(self) -> str:
        """Return the text of index.json."""
        return json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read index.json.

    Raises:
        KeMetricError: There is none, it is damaged, or of another format version.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise KeMetricError(
            f"{folder}: no index here (no {MANIFEST}); make one with ke-metric index build", ExitCode.DATA
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise KeMetricError(f"{path}: cannot be read: {type(error).__name__}: {error}", ExitCode.DATA) from error
    try:
        document = json.loads(text)
        version = document.get("format_version") if isinstance(document, dict) else None
        if version != FORMAT_VERSION:
            raise KeMetricError(
                f"{path}: format_version = {shown(version)}, this version of ke_metric reads {FORMAT_VERSION}",
                ExitCode.DATA,
            )
        return Manifest.model_validate(document)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise KeMetricError(
            f"{path}: {dotted(problem['loc'])} = {shown(problem['input'])}: {problem['msg']}", ExitCode.DATA
        ) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, KeMetricError):
            raise
        raise KeMetricError(f"{path}: damaged: {type(error).__name__}: {error}", ExitCode.DATA) from error
