"""A calculation without any code of ours: machines on which it gives the same bits give the same record."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version

import faiss
import numpy as np
import torch
from torch import nn

LIBRARIES = (
    *("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pillow", "pytorch-metric-learning"),
    *("click", "rich", "pydantic", "pyyaml", "safetensors", "faiss-cpu", "milvus-lite", "pymilvus"),
    *("onnx", "onnxruntime", "onnxscript"),
)


def machine() -> dict:
    """Return the canary and the versions of what a record depends on."""
    return {"canary": canary(), "versions": {name: _version(name) for name in LIBRARIES}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def canary() -> str:
    """Return a digest of a few training steps, products of matrices, a softmax and some random numbers."""
    stream = np.random.default_rng(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.from_numpy(stream.random(shape, dtype=np.float32) - 0.5)

    images, labels = numbers(8, 3, 24, 24), torch.arange(8) % 4
    layers = [
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16),
    ]
    network = nn.Sequential(*layers, nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    network = network.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(numbers(*parameter.shape))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    whole = hashlib.sha256(torch.__version__.encode())
    for _ in range(5):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        whole.update(loss.detach().numpy().tobytes())
    for parameter in network.parameters():
        whole.update(parameter.detach().numpy().tobytes())
    product = numbers(40, 129) @ numbers(129, 65)
    for result in (product, product.softmax(1), product.exp().log1p(), product.norm(dim=1), product.sum(0)):
        whole.update(result.numpy().tobytes())
    # NumPy and FAISS bring kernels of their own, which may differ where those of torch do not.
    rows, few = (stream.random((count, 65), dtype=np.float32) - np.float32(0.5) for count in (40, 3))
    index = faiss.IndexFlatIP(65)
    index.add(rows)
    for each in (rows @ rows.T, few @ rows.T, rows @ few[0], *index.search(few, 10)):
        whole.update(each.tobytes())
    drawn = torch.Generator().manual_seed(1)
    whole.update(
        torch.randn(100, generator=drawn).numpy().tobytes() + torch.rand(100, generator=drawn).numpy().tobytes()
    )
    return whole.hexdigest()
