"""Maps the top-level folders to the import package `backburn` (see pyproject.toml for the rest)."""

from setuptools import find_packages, setup

ROOTS = {"backburn.components": "components", "backburn.pipelines": "pipelines"}

setup(
    package_dir=ROOTS,
    packages=[
        package
        for root, folder in ROOTS.items()
        for package in [root, *(f"{root}.{name}" for name in find_packages(folder))]
    ],
)
