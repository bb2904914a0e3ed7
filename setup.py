"""Packaging: the folders at the repository's root are installed as one namespace, `triax`.

All else stands in pyproject.toml; this layout is what it can't say.
"""

from setuptools import find_packages, setup

FOLDERS = (
    "common",
    "models",
    "data",
    "parallel",
    "checkpoint",
    "training",
    "inference",
    "planning",
    "launcher",
)

packages = [
    f"triax.{package}"
    for folder in FOLDERS
    for package in (folder, *(f"{folder}.{sub}" for sub in find_packages(folder)))
]

setup(
    packages=packages,
    package_data={
        **{f"triax.{folder}": ["py.typed"] for folder in FOLDERS},
        "triax.launcher.report": ["assets/*"],
        "triax.launcher.slurm": ["job.sh"],
    },
    package_dir={f"triax.{folder}": folder for folder in FOLDERS},
)
