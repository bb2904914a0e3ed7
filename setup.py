"""Packaging: the folders at the repository's root are installed as one namespace, `triax`."""

from pathlib import Path

from setuptools import find_packages, setup

FOLDERS = ("common", "models", "data", "parallel", "checkpoint", "training", "launcher")

packages = [
    f"triax.{package}"
    for folder in FOLDERS
    for package in (folder, *(f"{folder}.{sub}" for sub in find_packages(folder)))
]

setup(
    name="triax",
    version="0.1.0",
    description="Distributed pretraining of decoder-only transformers on one CPU or many GPUs",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=packages,
    package_data={"triax.launcher": ["slurm_job.sh"]},
    package_dir={f"triax.{folder}": folder for folder in FOLDERS},
    entry_points={"console_scripts": ["triax=triax.launcher.cli:main"]},
    install_requires=[
        "torch>=2.11",
        "numpy>=2.0",
        "datasets>=3.0",
        "pyarrow>=17.0",
        "tokenizers>=0.21",
        "safetensors>=0.5",
        "pydantic>=2.10",
        "rich>=13.9",
        "tensorboard>=2.18",
        "matplotlib>=3.9",
        "tomli-w>=1.1",
        "xxhash>=3.5",
    ],
    extras_require={
        "test": [
            "pytest>=8.3",
            "hypothesis>=6.120",
            "transformers>=4.51",
            "megatron-core>=0.16",
            "deepspeed>=0.19",
        ],
        "dev": ["ruff>=0.9", "mypy>=1.14", "pre-commit>=4.0", "kubernetes-validate>=1.31"],
        "deepspeed": ["deepspeed>=0.19", "megatron-core>=0.16"],
        "wandb": ["wandb>=0.19"],
        "hf": ["transformers>=4.51"],
    },
)
