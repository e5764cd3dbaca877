"""Maps the top-level folders to the import package `backburn` (see pyproject.toml for the rest)."""

from setuptools import find_namespace_packages, setup

ROOTS = {"backburn.components": "components", "backburn.pipelines": "pipelines"}


def _folders(root: str) -> list[str]:
    """Packages, and folders of data files, which setuptools wants named too."""
    return [name for name in find_namespace_packages(root) if "__pycache__" not in name]


setup(
    package_dir=ROOTS,
    packages=[
        package
        for root, folder in ROOTS.items()
        for package in [root, *(f"{root}.{name}" for name in _folders(folder))]
    ],
)
