"""Packaging: `pip install .` or `pip install -e .`; extras choose a GPU."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
CUPY = ">=14.0.1,!=14.1.0,<15"  # 14.1.0 is broken; 15 is not out

setup(
    name="minqkv",
    version=re.search(r'__version__ = "(.+)"', (here / "minqkv/version.py").read_text("utf-8"))[1],
    description="Attention with shared query, key and value projections: a NumPy/CuPy reference to be read end to end",
    long_description=(here / "README.md").read_text("utf-8") if (here / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[*find_packages(include=["minqkv", "minqkv.*"]), "minqkv._lessons"],
    package_dir={"minqkv._lessons": "lessons"},
    package_data={"minqkv": ["published/*.csv"], "minqkv._lessons": ["*.py", "*/*.py", "README.md"]},
    install_requires=["numpy>=2.0", "click>=8.1", "rich>=14.3"],
    extras_require={
        "test": ["pytest>=8"],
        "oracle": ["torch"],
        "lint": ["ruff==0.17.6"],
        "cuda12": [f"cupy-cuda12x[ctk]{CUPY}"],
        "cuda13": [f"cupy-cuda13x[ctk]{CUPY}"],
        "rocm7": ["cupy-rocm-7-0>=14.0.1,<15"],
    },
    entry_points={"console_scripts": ["minqkv = minqkv.cli:main"]},
)
