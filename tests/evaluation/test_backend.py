import pytest
import torch

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation import backend as faiss_library
from ke_metric.evaluation.backend import Backend, choose_backend, exact_products


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
