"""Settings of a store: an option that its kind would not read is refused, and so is a misspelt one."""

import json

import pytest

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval.index import StoreSettings


def test_what_is_left_out_takes_its_default():
    assert (
        StoreSettings.of() == StoreSettings.of(kind=None, factory=None) == StoreSettings(kind="faiss", factory="auto")
    )
    assert StoreSettings.of(kind="milvus", uri="http://host:1", collection="c", index="HNSW").index == "HNSW"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "memmap", "factory": "Flat"}, "factory is for a store of kind 'faiss', this one is 'memmap'"),
        ({"kind": "milvus", "search": {"nprobe": 3}}, "search is for a store of kind 'faiss'"),
        ({"kind": "faiss", "uri": "http://host:1"}, "uri is for a store of kind 'milvus' or 'postgres'"),
        ({"kind": "memmap", "index": "HNSW"}, "index is for a store of kind 'milvus'"),
        ({"kind": "oracle"}, "kind = 'oracle'"),
        ({"search": {"nprobe": "3"}}, "search.nprobe = '3'"),
        ({"colour": "red"}, "colour"),
        ({"kind": "postgres"}, "uri is missing: a store of kind 'postgres' is at postgresql://user@host/database"),
        ({"kind": "postgres", "uri": ""}, "uri is missing"),
        ({"kind": "postgres", "uri": "postgresql://x", "factory": "Flat"}, "factory is for a store of kind 'faiss'"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(fields, words):
    with pytest.raises(KeMetricError) as caught:
        StoreSettings.of(**fields)
    assert caught.value.exit_code == ExitCode.USAGE
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [{}, {"kind": "memmap"}, {"factory": "IVF64,Flat", "search": {"nprobe": 8}}, {"kind": "milvus", "uri": "x"}],
)
def test_settings_come_back_from_json(fields):
    settings = StoreSettings.of(**fields)
    assert StoreSettings.model_validate(json.loads(json.dumps(settings.model_dump(mode="json")))) == settings
