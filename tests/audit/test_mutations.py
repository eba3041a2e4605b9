"""Specs and records mutated at random: a clean message and the promised exit code, never a traceback."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from auditorch.audit.cli import main
from auditorch.audit.runner import run_audit
from auditorch.audit.spec import load_spec
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from .runs import write_project

SPEC = """version: 1
name: toy
model: {factory: model.py:build, weights: model.safetensors, preprocessing: {mean: [0.5], std: [0.5]}}
data: {source: test.npz, limit: 30, classes: [a, b, c, d]}
checks:
  - performance: {bins: 10}
  - evasion: {id: linf, norm: linf, eps: 8/255, attack: pgd, steps: 5, curve: [2/255, 8/255]}
  - membership: {train: test.npz, variants: [base]}
variants:
  - regularization: {train: test.npz, epochs: 1, mixup: 0}
gates:
  - performance.accuracy >= 0.8
  - regularization:linf.robust_accuracy >= base - 2%
  - expression: 0.1 <= linf.robust_accuracy <= 0.9 and performance.recall[a] > 0
    confidence: none
seed: 3
device: cpu
batch_size: 16
"""

SMALL = """version: 1
model: {factory: model.py:build, weights: model.safetensors}
data: {source: test.npz, limit: 30}
checks: [{performance: {resamples: 100}}, {evasion: {id: linf, attack: fgsm, norm: linf, eps: 0.1, diagnostics: false}}]
gates:
  - linf.robust_accuracy >= 0.1 and performance.recall[0] > 0
"""

ODD = (
    None, True, 0, -1, 10**400, 1e308, float("nan"), float("inf"), "", " ", "\x00", "\ud800", "no", "0x10", "1e999",
    "8/0", "../../etc", "a" * 2000, "{{x}}", "!!python/object:os.system", "*:c.m >= base", "💥", [], {}, [[]], {"": {}},
    {"a": {"b": {"c": 1}}}, ["x"] * 50, [None], -(2**63), 2**64, 0.1 + 0.2, "2026-01-01", "99999-99-99", "base", "linf",
)  # fmt: skip

FAST = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=(Phase.explicit, Phase.generate),
)


def places(node: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a tree."""
    yield where
    for key, part in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(part, (*where, key))


def mutated(data: st.DataObject, tree: Any) -> Any:
    """The tree with one to four values replaced, removed, repeated, renamed or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(data.draw(st.integers(1, 4))):
        known = [where for where in places(tree) if where]
        if not known:
            break
        *above, last = data.draw(st.sampled_from(known))
        parent = tree
        for key in above:
            parent = parent[key]
        match data.draw(st.sampled_from(["replace", "replace", "remove", "repeat", "rename", "move"])):
            case "replace":
                parent[last] = copy.deepcopy(data.draw(st.sampled_from(ODD)))
            case "remove":
                del parent[last]
            case "repeat" if isinstance(parent, list):
                parent.insert(last, copy.deepcopy(parent[last]))
            case "rename" if isinstance(parent, dict):
                parent[data.draw(st.sampled_from(["x", "", str(last) + "s", "id", "kind"]))] = parent.pop(last)
            case _:
                other = data.draw(st.sampled_from(known))
                value = tree
                try:
                    for key in other:
                        value = value[key]
                except (KeyError, IndexError, TypeError):
                    continue
                parent[last] = copy.deepcopy(value)
    return tree


def scrambled(data: st.DataObject, text: bytes) -> bytes:
    """The bytes with a piece cut out and others put in."""
    start, length = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 40))
    piece = data.draw(
        st.one_of(
            st.binary(max_size=12),
            st.text(max_size=8).map(lambda t: t.encode("utf-8", "surrogatepass")),
            st.sampled_from(
                [b"&a", b"*a", b"<<: *a", b"!!set", b"\t", b"- ", b": ", b"{", b"}", b"%", b"\n---\n", b"[" * 99]
            ),
        )
    )
    return text[:start] + piece + text[start + length :]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def clean(done: Result, *codes: int) -> None:
    assert done.exit_code in codes, (done.exit_code, done.output[-500:])
    assert "Internal error" not in done.stderr
    assert "Traceback" not in done.output
    if done.exit_code == 2:
        assert len(done.stderr.strip()) > 10


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose audit, of one check and one variant, is in ``out``."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    (folder / "small.yaml").write_text(SMALL)
    run_audit(load_spec(folder / "small.yaml"), folder / "out")
    (folder / "spec.yaml").write_text(SPEC)
    shutil.copytree(folder / "out", folder / "mutated")
    return folder


def spec_tree(project: Path, data: st.DataObject) -> None:
    tree = mutated(data, yaml.safe_load(SPEC))
    path = project / "mutated.yaml"
    path.write_bytes(yaml.safe_dump(tree, allow_unicode=False).encode("utf-8", "surrogatepass"))
    clean(call("validate", str(path)), 0, 2)


def spec_bytes(project: Path, data: st.DataObject) -> None:
    path = project / "mutated.yaml"
    path.write_bytes(scrambled(data, SPEC.encode()))
    clean(call("validate", str(path)), 0, 2)


def record_tree(project: Path, data: st.DataObject) -> None:
    tree = mutated(data, json.loads((project / "out/audit.json").read_bytes()))
    read_somehow(project, json.dumps(tree).encode("utf-8", "surrogatepass"), data)


def record_bytes(project: Path, data: st.DataObject) -> None:
    read_somehow(project, scrambled(data, (project / "out/audit.json").read_bytes()), data)


def read_somehow(project: Path, content: bytes, data: st.DataObject) -> None:
    """Whatever the record now says, each command that reads it ends well; a changed record is never verified."""
    (project / "mutated/audit.json").write_bytes(content)
    same = content == (project / "out/audit.json").read_bytes()
    out = str(project / "mutated")
    match data.draw(st.sampled_from(["report", "json", "compare", "verify", "reproduce"])):
        case "report":
            clean(call("report", out), 0, 2)
        case "json":
            clean(call("report", out, "--format", "json"), 0, 2)
        case "compare":
            clean(call("compare", str(project / "out"), out, "--markdown", str(project / "c.md")), 0, 2)
        case "verify":
            # An unchanged record can still be beside the page of an earlier mutation.
            clean(call("verify", out, "--no-model", "--quiet"), *((0, 1) if same else (1, 2)))
        case _:
            clean(call("reproduce", out, "absent"), 2)


KINDS = {"spec": spec_tree, "spec bytes": spec_bytes, "record": record_tree, "record bytes": record_bytes}


@pytest.mark.parametrize("kind", ["spec", "spec bytes"])
@FAST
@given(data=st.data())
def test_a_mutated_spec_is_read_or_refused(project: Path, kind: str, data: st.DataObject) -> None:
    KINDS[kind](project, data)


@pytest.mark.parametrize("kind", ["record", "record bytes"])
@settings(FAST, max_examples=40)
@given(data=st.data())
def test_a_mutated_record_is_read_or_refused(project: Path, kind: str, data: st.DataObject) -> None:
    KINDS[kind](project, data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "runs"), [("spec", 4000), ("spec bytes", 3000), ("record", 2000), ("record bytes", 1000)]
)
def test_ten_thousand_mutations(project: Path, kind: str, runs: int) -> None:
    @settings(FAST, max_examples=runs)
    @given(data=st.data())
    def all_of_them(data: st.DataObject) -> None:
        KINDS[kind](project, data)

    all_of_them()
