"""Packaging: the folders at the repository's root are installed as one package, `triax`.

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
packages.append("triax")

setup(
    packages=packages,
    package_data={
        "triax": ["py.typed"],
        **{f"triax.{folder}": ["py.typed"] for folder in FOLDERS},
        "triax.launcher.init": ["templates/*.toml"],
        "triax.launcher.report": ["assets/*"],
        "triax.launcher.slurm": ["job.sh"],
    },
    # What `import triax` itself offers: `api/` stands for the package that holds the others.
    package_dir={"triax": "api", **{f"triax.{folder}": folder for folder in FOLDERS}},
)
