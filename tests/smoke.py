"""Run from another folder against an installed wheel: every module imports, the package data is there, the CLI answers.

Not collected by pytest; ``make wheel-check`` runs it in a fresh environment.
"""

import importlib
import json
import pkgutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.resources import files
from pathlib import Path

ROOTS = ("audit", "attacks", "defenses", "privacy", "reports")
DATA = {
    "audit.demo": ("train.npz", "test.npz", "pretrained.safetensors", "audit.yaml", "LICENSE-fashion-mnist.txt"),
    "reports": ("py.typed", "templates"),
}
CLI = Path(sysconfig.get_path("scripts")) / "auditorch"


def modules() -> list[str]:
    found = []
    for root in ROOTS:
        package = importlib.import_module(f"auditorch.{root}")
        found += [module.name for module in pkgutil.walk_packages(package.__path__, f"auditorch.{root}.")]
    return found


def run(*arguments: str, folder: str, code: int = 0) -> str:
    done = subprocess.run([CLI, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode != code:
        sys.exit(f"auditorch {' '.join(arguments)} exited {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def main() -> None:
    for name in modules():
        importlib.import_module(name)
    for package, names in DATA.items():
        for name in names:
            if (
                not (files(f"auditorch.{package}") / name).is_file()
                and not (files(f"auditorch.{package}") / name).is_dir()
            ):
                sys.exit(f"{package}/{name} is not in the wheel")
    with tempfile.TemporaryDirectory() as folder:
        if "verify" not in run("--help", folder=folder):
            sys.exit("the help does not name the commands")
        json.loads(run("schema", "spec", folder=folder))
        json.loads(run("schema", "record", folder=folder))
        if "evasion" not in run("list", "checks", folder=folder):
            sys.exit("the registry does not list the evasion check")
        run("validate", "missing.yaml", folder=folder, code=2)
    print(f"{len(modules())} modules import, package data is complete, the command line answers")


if __name__ == "__main__":
    main()
