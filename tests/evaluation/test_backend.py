"""Which library searches on which device, whether it is whole, and that all find the same neighbours."""

import ast
import importlib.util
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation import backend as faiss_library
from ke_metric.evaluation.backend import Backend, Neighbors, choose_backend, exact_products, find_self_matches, search


@pytest.fixture
def with_faiss(monkeypatch):
    monkeypatch.setattr(faiss_library, "is_installed", lambda: True)
    monkeypatch.setattr(faiss_library, "describe_faiss", lambda: faiss_library.FaissLibrary("faiss-cpu", "1.2.3", 0))


@pytest.fixture
def without_faiss(monkeypatch):
    monkeypatch.setattr(faiss_library, "is_installed", lambda: False)


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu", 0)])
def test_auto_on_the_processor_is_faiss_when_installed(with_faiss, device):
    assert choose_backend("auto", device) == Backend("faiss-cpu", "cpu")


def test_auto_on_the_processor_is_torch_without_faiss(without_faiss):
    assert choose_backend() == Backend("torch", "cpu")


def test_auto_elsewhere_is_torch(with_faiss):
    # torch's "meta" device stands for a GPU: not the processor, and on every machine.
    assert choose_backend("auto", torch.device("meta")) == Backend("torch", "meta")


def test_auto_does_not_step_around_a_broken_faiss(monkeypatch):
    monkeypatch.setattr(faiss_library, "is_installed", lambda: True)
    monkeypatch.setattr(faiss_library, "installed_distributions", lambda: ("faiss-cpu", "faiss-gpu"))
    with pytest.raises(KeMetricError, match="break each other"):
        choose_backend("auto")


def test_a_name_is_taken_at_its_word(with_faiss):
    assert choose_backend("torch") == Backend("torch", "cpu")
    assert choose_backend("faiss-cpu", "meta") == Backend("faiss-cpu", "cpu")


def test_missing_faiss_is_not_replaced(without_faiss, monkeypatch):
    monkeypatch.setattr(faiss_library, "installed_distributions", tuple)
    with pytest.raises(KeMetricError, match="FAISS is not installed") as caught:
        choose_backend("faiss-cpu")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_faiss_gpu_without_a_gpu(with_faiss):
    with pytest.raises(KeMetricError, match=r"faiss-cpu 1\.2\.3 sees no GPU.*'torch' or 'faiss-cpu'") as caught:
        choose_backend("faiss-gpu")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


@pytest.mark.parametrize("name", ["faiss_cpu", "Torch", "annoy"])
def test_unknown_name(name):
    with pytest.raises(KeMetricError, match=rf"backend = '{name}'.*auto, faiss-cpu, faiss-gpu, torch") as caught:
        choose_backend(name)
    assert caught.value.exit_code == ExitCode.RECIPE
    assert ("did you mean" in str(caught.value)) == (name != "annoy")


@pytest.mark.parametrize("device", ["graphics", "cuda:99"])
def test_device_that_is_not_there(device):
    with pytest.raises(KeMetricError, match=f"device = '{device}' cannot be used") as caught:
        choose_backend("torch", device)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


@pytest.fixture
def operands():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, 64, generator=generator), torch.randn(64, 64, generator=generator)


def test_exact_products_undo_autocast_and_reduced_precision(operands):
    left, right = operands
    expected = left @ right
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal((left @ right).float(), expected)
        with exact_products("cpu"):
            assert torch.equal(left @ right, expected)


def settings_now():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision


@pytest.fixture(params=["medium", "high", "highest"])
def setting(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield settings_now()
    torch.set_float32_matmul_precision(before)


def test_exact_products_leave_the_settings_as_they_were(setting):
    with exact_products("cpu"):
        assert settings_now() == ("ieee", "ieee")
    assert settings_now() == setting


def test_exact_products_leave_the_settings_as_they_were_after_an_error(setting):
    with pytest.raises(KeyError, match="mistake"), exact_products("cpu"):
        raise KeyError("mistake")
    assert settings_now() == setting


needs_faiss = pytest.mark.skipif(not faiss_library.is_installed(), reason="FAISS is not installed")


def pretend_installed(monkeypatch, *names):
    def only_these(name):
        if name not in names:
            raise PackageNotFoundError(name)
        return distribution("numpy")

    monkeypatch.setattr(faiss_library.importlib.metadata, "distribution", only_these)


def put_first(monkeypatch, folder, source):
    (folder / "faiss").mkdir()
    (folder / "faiss" / "__init__.py").write_text(source)
    # Set and then removed, so that what the test imports does not outlive it.
    monkeypatch.setitem(sys.modules, "faiss", None)
    del sys.modules["faiss"]
    monkeypatch.syspath_prepend(folder)


def test_missing(monkeypatch):
    pretend_installed(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(KeMetricError, match=r"not installed.*pip install faiss-cpu.*'torch'") as caught:
        faiss_library.load_faiss()
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert not faiss_library.is_installed()


@pytest.mark.parametrize("gpu", ["faiss-gpu", "faiss-gpu-cuvs"])
def test_two_distributions_are_refused_before_the_import(monkeypatch, tmp_path, gpu):
    pretend_installed(monkeypatch, "faiss-cpu", gpu)
    put_first(monkeypatch, tmp_path, "raise AssertionError('imported')")
    repair = f"pip uninstall -y faiss-cpu {gpu} && pip install --force-reinstall --no-deps {gpu}`"
    with pytest.raises(KeMetricError, match="break each other") as caught:
        faiss_library.load_faiss()
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert repair in str(caught.value)
    assert faiss_library.installed_distributions() == ("faiss-cpu", gpu)


@pytest.mark.parametrize("error", ["RuntimeError", "ImportError", "OSError"])
def test_broken_import_says_why_and_how_to_mend_it(monkeypatch, tmp_path, error):
    pretend_installed(monkeypatch, "faiss-gpu")
    put_first(monkeypatch, tmp_path, f"raise {error}('libcublas is gone')")
    with pytest.raises(KeMetricError, match=r"libcublas is gone.*--no-deps faiss-gpu`") as caught:
        faiss_library.load_faiss()
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_broken_import_of_unknown_origin(monkeypatch, tmp_path):
    pretend_installed(monkeypatch)
    put_first(monkeypatch, tmp_path, "import no_such_module_at_all")
    with pytest.raises(KeMetricError, match=r"no_such_module_at_all.*--no-deps faiss-cpu`"):
        faiss_library.load_faiss()


def test_description_of_any_faiss(monkeypatch, tmp_path):
    put_first(monkeypatch, tmp_path, "__version__ = '9.8.7'\ndef get_num_gpus(): return 2\n")
    pretend_installed(monkeypatch)
    assert faiss_library.describe_faiss() == faiss_library.FaissLibrary("unknown", "9.8.7", 2)
    pretend_installed(monkeypatch, "faiss-gpu")
    assert faiss_library.describe_faiss() == faiss_library.FaissLibrary("faiss-gpu", "9.8.7", 2)


@needs_faiss
def test_description_of_this_faiss():
    described = faiss_library.describe_faiss()
    (name,) = faiss_library.installed_distributions()
    assert described.distribution == name
    assert distribution(name).version.startswith(described.version)
    assert described.gpus >= 0


def imports(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_only_this_module_imports_faiss_and_only_when_asked():
    for path in Path(faiss_library.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        assert ("faiss" in imports(ast.walk(tree))) == (path.name == "backend.py"), path
        assert not {"faiss", "sklearn"} & set(imports(tree.body)), path


DIAGONAL = np.float32(0.5) ** 0.5


@pytest.mark.parametrize("k", [1, 7, 119, 120, 150])
def test_agrees_with_plain_loops(backend, hard_vectors, slow_search, same_neighbors, k):
    query, gallery = hard_vectors(30, seed=1), hard_vectors(120, seed=2)
    same_neighbors(search(query, gallery, k, backend=backend), slow_search(query, gallery, k))


@pytest.mark.parametrize("k", [1, 7, 59, 60, 90])
def test_agrees_with_plain_loops_without_the_query(backend, hard_vectors, slow_search, same_neighbors, k):
    items, own = hard_vectors(60), np.arange(60)
    found = search(items, items, k, backend=backend, self_match=own)
    same_neighbors(found, slow_search(items, items, k, own))
    assert not (found.indices == own[:, None]).any()


def test_agrees_with_scikit_learn(backend, hard_vectors, same_neighbors):
    items = hard_vectors(2000)
    distances, indices = NearestNeighbors(n_neighbors=20, algorithm="brute").fit(items).kneighbors()
    expected = Neighbors(indices.astype(np.int64), (1 - distances**2 / 2).astype(np.float32))
    same_neighbors(search(items, items, 20, backend=backend, self_match=np.arange(2000)), expected)


@given(st.integers(1, 70), st.integers(1, 12))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks_do_not_matter(backend, hard_vectors, same_neighbors, chunk, k):
    items, own = hard_vectors(61), np.arange(61)
    whole = search(items, items, k, backend=replace(backend, chunk=1000), self_match=own)
    same_neighbors(search(items, items, k, backend=replace(backend, chunk=chunk), self_match=own), whole)


def test_no_more_queries_than_the_chunk_are_looked_up_at_once(hard_vectors, monkeypatch):
    seen = []

    def recording(gallery, backend):
        lookup = faiss_library._torch_lookup(gallery, backend)
        return lambda query, depth: (seen.append((len(query), depth)), lookup(query, depth))[1]

    monkeypatch.setitem(faiss_library._LOOKUPS, "torch", recording)
    search(hard_vectors(23), hard_vectors(50, seed=1), 4, backend=Backend("torch", chunk=10))
    assert seen == [(10, 4), (10, 4), (3, 4)]


def test_twice_the_same(backend, hard_vectors):
    items = hard_vectors(500)
    first, second = (search(items, items, 9, backend=backend, self_match=np.arange(500)) for _ in range(2))
    np.testing.assert_array_equal(first.indices, second.indices)
    np.testing.assert_array_equal(first.similarities, second.similarities)


def test_self_is_removed_at_any_rank_and_its_duplicates_stay(backend):
    """Items 0 to 4 are one picture under five ids: each finds the other four, and never itself, before item 5."""
    items = np.array([[1, 0]] * 5 + [[DIAGONAL, DIAGONAL]], dtype=np.float32)
    found = search(items, items, 5, backend=backend, self_match=np.arange(6))
    for item in range(5):
        assert set(found.indices[item, :4]) == set(range(5)) - {item}
        assert found.indices[item, 4] == 5
    np.testing.assert_allclose(found.similarities[:5], [[1, 1, 1, 1, DIAGONAL]] * 5, atol=1e-6)


def test_with_fewer_neighbours_than_duplicates_self_may_not_be_found_at_all(backend):
    items = np.tile(np.array([[0, 1]], dtype=np.float32), (9, 1))
    found = search(items, items, 2, backend=backend, self_match=np.arange(9))
    assert (found.indices >= 0).all()
    assert not (found.indices == np.arange(9)[:, None]).any()


def test_a_self_match_may_even_be_the_least_similar(backend):
    """The same picture embedded by two networks: it is left out where it ranks, last, and nothing else is."""
    query = np.array([[1, 0], [1, 0]], dtype=np.float32)
    gallery = np.array([[1, 0], [DIAGONAL, DIAGONAL], [-1, 0]], dtype=np.float32)
    found = search(query, gallery, 3, backend=backend, self_match=np.array([2, -1]))
    assert found.indices.tolist() == [[0, 1, -1], [0, 1, 2]]
    assert found.similarities[0, 2] == -np.inf


def test_shared_ids(backend, hard_vectors, slow_search, same_neighbors):
    gallery = hard_vectors(40)
    query = np.concatenate([gallery[[5, 3]], hard_vectors(6, seed=9)])
    own = find_self_matches(("e", "c", *"uvwxyz"), tuple(chr(ord("a") + n) if n < 6 else str(n) for n in range(40)))
    assert own.tolist() == [4, 2, -1, -1, -1, -1, -1, -1]
    same_neighbors(search(query, gallery, 8, backend=backend, self_match=own), slow_search(query, gallery, 8, own))


def test_self_match_is_by_id_only(backend):
    query = np.array([[1, 0]], dtype=np.float32)
    gallery = np.array([[1, 0], [0, 1]], dtype=np.float32)
    same_picture = find_self_matches((10,), (10, 11))
    other_picture = find_self_matches((12,), (10, 11))
    assert search(query, gallery, 1, backend=backend, self_match=same_picture).indices.tolist() == [[1]]
    assert search(query, gallery, 1, backend=backend, self_match=other_picture).indices.tolist() == [[0]]


def test_no_ids_no_self_matches():
    assert find_self_matches(None, None) is None


@pytest.mark.parametrize(
    ("query_ids", "gallery_ids", "match"),
    [
        (None, ("a",), "queries: None, of the gallery: str"),
        ((1,), None, "queries: int, of the gallery: None"),
        ((1,), ("1",), "queries: int, of the gallery: str"),
    ],
)
def test_ids_that_cannot_be_compared(query_ids, gallery_ids, match):
    with pytest.raises(KeMetricError, match=match) as caught:
        find_self_matches(query_ids, gallery_ids)
    assert caught.value.exit_code == ExitCode.DATA


def int64(*rows):
    return np.array(rows, dtype=np.int64)


def float32(*rows):
    return np.array(rows, dtype=np.float32)


@pytest.mark.parametrize(
    ("indices", "similarities"),
    [
        (int64([1, 2]).astype(np.int32), float32([0.5, 0.4])),
        (int64([1, 2]), float32([0.5, 0.4]).astype(np.float64)),
        (int64(1, 2), float32(0.5, 0.4)),
        (int64([1, 2]), float32([0.5])),
        (int64([1, 2]), float32([0.4, 0.5])),
        (int64([1, 2]), float32([0.5, np.nan])),
        (int64([1, -1]), float32([0.5, 0.4])),
        (int64([1, 2]), float32([0.5, -np.inf])),
        (int64([1, -2]), float32([0.5, 0.4])),
    ],
    ids=["i32", "f64", "1-D", "shapes", "rising", "nan", "-1 with a value", "-inf with an item", "-2"],
)
def test_neighbors_check_themselves(indices, similarities):
    Neighbors(int64([1, 2, -1]), float32([0.5, 0.5, -np.inf]))
    with pytest.raises(AssertionError):
        Neighbors(indices, similarities)


@pytest.mark.parametrize(
    "wrong",
    [
        {"query": np.ones((2, 3), dtype=np.float32)},
        {"query": np.ones(2, dtype=np.float32)},
        {"gallery": np.ones((2, 2))},
        {"k": 0},
    ],
)
def test_search_checks_what_it_is_given(wrong):
    right = {"query": np.eye(2, dtype=np.float32), "gallery": np.eye(2, dtype=np.float32), "k": 1}
    search(**right, backend=Backend("torch"))
    with pytest.raises(AssertionError):
        search(**(right | wrong), backend=Backend("torch"))


class Resources:
    """Stands for GPU memory; FAISS does not keep it alive."""


@pytest.fixture
def faiss_with_gpu(monkeypatch):
    """The processor's FAISS under the names of the GPU's; what needs a real GPU is marked so below."""
    if not faiss_library.is_installed():
        pytest.skip("FAISS is not installed")
    faiss = faiss_library.load_faiss()
    made = SimpleNamespace(devices=[])

    def index(resources, dimension, place):
        assert isinstance(resources, Resources)
        made.devices.append(place.device)
        return faiss.IndexFlatIP(dimension)

    fake = SimpleNamespace(
        StandardGpuResources=Resources, GpuIndexFlatConfig=lambda: SimpleNamespace(device=None), GpuIndexFlatIP=index
    )
    monkeypatch.setattr(faiss_library, "load_faiss", lambda: fake)
    return made


@pytest.mark.parametrize(("device", "number"), [("cuda", 0), ("cuda:3", 3)])
def test_faiss_gpu_on_a_stand_in(faiss_with_gpu, hard_vectors, slow_search, same_neighbors, device, number):
    items, own = hard_vectors(40), np.arange(40)
    found = search(items, items, 5, backend=Backend("faiss-gpu", device, chunk=7), self_match=own)
    same_neighbors(found, slow_search(items, items, 5, own))
    assert faiss_with_gpu.devices == [number]


def test_faiss_gpu_returns_2048_neighbours_at_most(faiss_with_gpu):
    items = np.random.default_rng(0).normal(size=(2050, 2)).astype(np.float32)
    backend = Backend("faiss-gpu", "cuda")
    assert search(items[:2], items, 2048, backend=backend).indices.shape == (2, 2048)
    for k, own in ((2049, None), (2048, np.arange(2))):
        with pytest.raises(KeMetricError, match=r"at most 2048.*2049 are needed.*'torch' or 'faiss-cpu'") as caught:
            search(items[:2], items, k, backend=backend, self_match=own)
        assert caught.value.exit_code == ExitCode.ENVIRONMENT


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["faiss-gpu", "torch"])
def test_on_a_gpu(hard_vectors, slow_search, same_neighbors, name):
    if name == "faiss-gpu" and not (faiss_library.is_installed() and faiss_library.describe_faiss().gpus):
        pytest.skip("faiss-gpu is not installed")
    items, own = hard_vectors(300), np.arange(300)
    found = search(items, items, 20, backend=Backend(name, "cuda", chunk=100), self_match=own)
    same_neighbors(found, slow_search(items, items, 20, own))
