"""Packaging of tfp_cvae."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "tfp_cvae" / "__init__.py").read_text(), re.MULTILINE)[1]

TENSORBOARD = ["tensorboard>=2.20,<3"]
NOTEBOOKS = ["ipykernel>=6", "ipywidgets>=8", "papermill>=2.6", *TENSORBOARD]
DOCS = ["furo>=2025.7", "myst-nb>=1.3", "sphinx>=8", "sphinx-mathjax-offline>=0.0.2"]
BENCHMARKS = ["jax>=0.7", "torch>=2.9,<3"]
TEST = [
    "hypothesis>=6.100",
    "psutil>=5.9",
    "pytest>=8",
    "pytest-xdist>=3.8",
    "pyyaml>=6",
    "scipy>=1.11",
    *NOTEBOOKS,
    *DOCS,
]

setuptools.setup(
    name="tfp-cvae",
    version=VERSION,
    description="Class-conditional variational autoencoders with TensorFlow Probability and Keras",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=["tfp_cvae"],
    package_data={"tfp_cvae": ["py.typed"]},
    python_requires=">=3.10",
    # tensorflow and tf-keras have to be of the same minor version, and tensorflow-probability of the one made for them.
    install_requires=[
        "tensorflow>=2.21,<2.22",
        "tf-keras>=2.21,<2.22",
        "tensorflow-probability>=0.25,<0.26",
        "tensorflow-serving-api>=2.21,<2.22",
        "tensorflow-datasets>=4.9.10,<5",
        "filelock>=4,<5",
        "grpcio>=1.60,<2",
        "importlib_resources>=6",  # tensorflow-datasets needs it and does not ask for it.
        "matplotlib>=3.8,<4",
        "mlxtend>=0.23,<1",
        "numpy>=1.26,<3",
        "pillow>=10.1,<14",
        "protobuf>=6.31,<8",
        "requests>=2.32,<3",
        "scikit-learn>=1.4,<2",
        "tyro>=1.0,<2",
    ],
    extras_require={
        "tensorboard": TENSORBOARD,
        "notebooks": NOTEBOOKS,
        "docs": DOCS,
        "test": TEST,
        "benchmarks": BENCHMARKS,
        "dev": [*TEST, "mypy>=1.15", "pre-commit>=4", "ruff>=0.14"],
    },
    entry_points={"console_scripts": ["tfp-cvae = tfp_cvae.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
