"""Results between runs: atomic files, keys, and results that can no longer be trusted."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from auditorch.audit import storage
from auditorch.audit.cache import Cache, Key, seed_for, stable_hash
from auditorch.audit.context import read_evidence, write_evidence
from auditorch.audit.errors import OutputError
from auditorch.audit.storage import file_sha256, owned, write_atomic
from auditorch.reports.record import Evidence, Metric, Result

KEY = Key({"name": "c", "config": {"eps": 0.1}})


def result(*evidence: Evidence) -> Result:
    metric = Metric(name="share", value=float("inf"), ci_low=0.1 + 0.2)
    return Result(
        check="c", id="c", title="C", status="ok", metrics=(metric,), evidence=evidence, parameters={"at": (1, 2)}
    )


def test_a_kept_result_comes_back_equal(tmp_path: Path) -> None:
    kept = Cache(tmp_path).put(KEY, result())
    assert Cache(tmp_path).get(KEY, Result) == kept
    assert kept.metrics == result().metrics


def test_other_facts_have_another_key_in_any_order(tmp_path: Path) -> None:
    Cache(tmp_path).put(KEY, result())
    assert Cache(tmp_path).get(Key({"name": "c", "config": {"eps": 0.2}}), Result) is None
    assert Key({"config": {"eps": 0.1}, "name": "c"}).sha256 == KEY.sha256


def test_fresh_ignores_what_is_kept(tmp_path: Path) -> None:
    Cache(tmp_path).put(KEY, result())
    assert Cache(tmp_path, fresh=True).get(KEY, Result) is None


@pytest.mark.parametrize("harm", ["delete", "change", "truncate"])
def test_a_result_whose_evidence_is_harmed_is_not_taken(tmp_path: Path, harm: str) -> None:
    evidence = write_evidence(tmp_path, "evidence/base/c.safetensors", "scores", {"x": torch.arange(9.0)})
    Cache(tmp_path).put(KEY, result(evidence))
    assert Cache(tmp_path).get(KEY, Result) is not None
    path = tmp_path / evidence.path
    content = path.read_bytes()
    if harm == "delete":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + (b"\x01" if harm == "change" else b""))
    assert Cache(tmp_path).get(KEY, Result) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"result": {}}', b'{"result": null}', b"\xff\xfe"])
def test_a_broken_cache_file_counts_as_none(tmp_path: Path, content: bytes) -> None:
    Cache(tmp_path).put(KEY, result())
    next((tmp_path / "results").iterdir()).write_bytes(content)
    assert Cache(tmp_path).get(KEY, Result) is None


def test_the_facts_are_kept_for_a_reader(tmp_path: Path) -> None:
    Cache(tmp_path).put(KEY, result())
    file = next((tmp_path / "results").iterdir())
    assert file.name == f"{KEY.sha256}.json"
    assert json.loads(file.read_bytes())["key"] == {"name": "c", "config": {"eps": 0.1}}


def test_seeds_and_hashes_are_the_same_in_every_process() -> None:
    code = (
        "from auditorch.audit.cache import seed_for, stable_hash;"
        "print(seed_for(7, 'check', 'linf'), stable_hash({'a': [1, 2.5], 'ü': None}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(seed_for(7, "check", "linf")), stable_hash({"ü": None, "a": [1, 2.5]})]
    assert len({seed_for(7, "check", "linf"), seed_for(8, "check", "linf"), seed_for(7, "check", "l2")}) == 3
    assert all(0 <= seed_for(seed, "x") < 2**31 for seed in range(50))


def test_equal_tensors_give_equal_bytes_whatever_their_order_and_layout(tmp_path: Path) -> None:
    x, tied = torch.arange(6.0).view(2, 3), torch.ones(2)
    one = write_evidence(tmp_path, "a.safetensors", "scores", {"x": x.t(), "b": tied, "c": tied})
    two = write_evidence(tmp_path, "b.safetensors", "scores", {"c": tied, "b": tied, "x": x.t().contiguous()})
    assert one.sha256 == two.sha256 == file_sha256(tmp_path / "a.safetensors")
    assert torch.equal(read_evidence(tmp_path, one)["x"], x.t())


def test_evidence_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    evidence = write_evidence(tmp_path, "out.safetensors", "scores", {"x": torch.ones(1)})
    (tmp_path / "inner").mkdir()
    outside = evidence.model_copy(update={"path": "../out.safetensors"})
    with pytest.raises(OutputError, match="inside the output folder"):
        read_evidence(tmp_path / "inner", outside)


def test_evidence_that_is_no_tensor_file_is_a_clean_error(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    evidence = Evidence(path="x.safetensors", sha256=file_sha256(tmp_path / "x.safetensors"), kind="scores")
    with pytest.raises(OutputError, match="no safetensors file"):
        read_evidence(tmp_path, evidence)


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "a.json", b"old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device\. Free some space"):
        write_atomic(tmp_path / "a.json", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == b"old"


def test_a_folder_that_takes_no_files_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written.*-o"), owned(tmp_path / "file" / "out"):
        pass

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(storage.tempfile, "mkstemp", read_only)
    with pytest.raises(OutputError, match=r"Read-only file system\. Choose a folder"), owned(tmp_path / "out"):
        pass


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from auditorch.audit.storage import owned\n"
        "with owned(Path(sys.argv[1])):\n    print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(OutputError, match=rf"another run \(process {other.pid}\) is writing"), owned(tmp_path):
            pass
        other.kill()
        other.wait()
    with owned(tmp_path):  # the lock went with its owner
        assert not list(tmp_path.glob(".probe*"))


def test_rests_of_a_killed_run_are_removed_and_nothing_else(tmp_path: Path) -> None:
    rest, kept = tmp_path / "evidence/base/.c.safetensors.x1.part", tmp_path / "evidence/base/c.part"
    rest.parent.mkdir(parents=True)
    rest.write_text("half")
    kept.write_text("whole")
    with owned(tmp_path):
        assert not rest.exists()
        assert kept.exists()
