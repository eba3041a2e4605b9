"""Maps the root folders to sub-packages of ``auditorch`` (docs/decisions/001-folders-are-packages.md)."""

from setuptools import find_packages, setup

ROOTS = ("audit", "attacks", "defenses", "privacy", "reports")

setup(
    packages=[
        f"auditorch.{package}"
        for root in ROOTS
        for package in (root, *(f"{root}.{sub}" for sub in find_packages(root)))
    ],
    package_dir={f"auditorch.{root}": root for root in ROOTS},
)
