"""Packaging: `pip install .` or `pip install -e .`; extras choose a GPU."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
CUPY = ">=14.0.1,!=14.1.0,<15"  # 14.1.0 is broken; 15 is not out


class BuildWithLessons(build_py):
    """Lessons live beside the package; a wheel carries a copy inside it."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "minqkv" / "_lessons"
            ignore = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(here / "lessons", target, ignore=ignore, dirs_exist_ok=True)


setup(
    name="minqkv",
    version=re.search(
        r'__version__ = "(.+)"', (here / "minqkv/runtime/version.py").read_text("utf-8")
    )[1],
    description="Attention with shared query, key and value projections: "
    "a NumPy/CuPy reference to be read end to end",
    long_description=(here / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    url="https://arxiv.org/abs/2606.04032",
    project_urls={
        "Paper": "https://arxiv.org/abs/2606.04032",
        "Code of the paper's authors": "https://github.com/Brainchip-Inc/Do-Transformers-Need-3-Projections",
    },
    keywords="attention transformer kv-cache numpy cupy autograd teaching gqa mqa mla",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["minqkv", "minqkv.*"]),
    package_dir={"": "."},  # not a mapping: a clone's folder must not hide the package
    package_data={
        "minqkv": ["py.typed"],
        "minqkv.study.published": ["*.csv", "*.toml"],
        "minqkv.configs": ["*.toml"],
        "minqkv.designs": ["*.toml"],
        "minqkv.kernels": ["*.cu", "*.cuh"],
        "minqkv.render": ["*.css", "*.js"],
        "minqkv.tasks": ["builtin.jsonl"],
    },
    cmdclass={"build_py": BuildWithLessons},
    install_requires=["numpy>=2.0", "click>=8.1,!=8.3.0", "rich>=14.3", "threadpoolctl>=3.1"],
    extras_require={
        "test": ["pytest>=8", "pytest-xdist>=3.5"],
        "oracle": ["torch"],
        "browser": ["playwright"],
        "notebook": ["nbclient", "ipykernel"],
        "lint": ["ruff==0.17.6"],
        "images": ["pillow>=10"],
        "kernels": ["nvidia-cuda-nvrtc==13.5.*", "nvidia-cuda-runtime==13.5.*"],  # to test them
        "dask": ["distributed"],
        "mpi": ["mpi4py"],
        "cuda12": [f"cupy-cuda12x[ctk]{CUPY}"],
        "cuda13": [f"cupy-cuda13x[ctk]{CUPY}"],
        "rocm7": ["cupy-rocm-7-0>=14.0.1,<15"],
    },
    entry_points={"console_scripts": ["minqkv = minqkv.__main__:main"]},
)
