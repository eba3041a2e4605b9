"""Signatures in minisign's format: what it made is read here, and a forgery is told from an audit."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from auditorch.audit.cli import main
from auditorch.audit.errors import OutputError
from auditorch.audit.runner import run_audit
from auditorch.audit.signing import SUFFIX, check_signature, make_keys, read_public, sign
from auditorch.audit.spec import load_spec
from auditorch.reports.render import render
from auditorch.reports.schema import read_record, write_record
from click.testing import CliRunner, Result

from .runs import write_project

PUBLIC = "RWRPpaWOh4bZFL6h+r2kbQPQlB/uo9m1uOBXKROQaYfjbFzOykXKXi82"
SECRET = (
    "RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAT6WljoeG2RTjHWcJOjGx4/+c6rP+"
    "asL7S63XH8+FY3c563geEvgP3L6h+r2kbQPQlB/uo9m1uOBXKROQaYfjbFzOykXKXi82AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
)
SIGNATURE = """untrusted comment: signature from minisign secret key
RURPpaWOh4bZFHb9+XhjHkq1E4RvSNv1LEEl/hmYF/FhI6Ve+7HPA9Yo35AsXCh/6j7nbiCu4x0Zri9MZ9G4iX05JOhxVpwAPgk=
trusted comment: from minisign
7ZDHbGORjlN6toE7FVRWFANfoE98EM8Vs7tDewO1sSaF/TppDhBYJlQHB5Fj9dUCbI9j+p04PxYQJ2sca/pfCA==
"""
"""Made with minisign 0.11: `minisign -G -W`, and `minisign -S` of a file that holds the line hi."""


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    run_audit(load_spec(write_project(folder)), folder / "out")
    return folder


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    (tmp_path / "f").write_bytes(b"hi\n")
    (tmp_path / "f.minisig").write_text(SIGNATURE)
    return tmp_path / "f"


def test_what_minisign_signed_is_accepted(signed: Path) -> None:
    assert check_signature(signed, read_public(PUBLIC)) == (True, "from minisign")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("from minisign", "from somebody", "comment was changed"),
        ("Hb9+Xhj", "Hb9+Xhk", "does not fit"),
        ("RURP", "RUQP", "another key"),
        ("RURP", "XXRP", "not in minisign's format"),
        ("RURPpa", "!", "no readable signature"),
        (SIGNATURE, "", "no readable signature"),
    ],
)
def test_a_changed_signature_is_refused(signed: Path, old: str, new: str, problem: str) -> None:
    (signed.parent / "f.minisig").write_text(SIGNATURE.replace(old, new))
    ok, detail = check_signature(signed, read_public(PUBLIC))
    assert not ok
    assert problem in detail


def test_a_changed_file_is_refused(signed: Path) -> None:
    signed.write_bytes(b"ho\n")
    assert check_signature(signed, read_public(PUBLIC)) == (False, "the signature does not fit the file")


def test_a_key_of_minisign_signs(tmp_path: Path) -> None:
    (tmp_path / "k").write_text(f"untrusted comment: theirs\n{SECRET}\n")
    (tmp_path / "f").write_bytes(b"content")
    assert sign(tmp_path / "f", tmp_path / "k", "a\ncomment") == tmp_path / f"f{SUFFIX}"
    assert check_signature(tmp_path / "f", read_public(PUBLIC)) == (True, "a comment")


def test_minisign_accepts_ours(tmp_path: Path) -> None:
    minisign = shutil.which("minisign")
    if minisign is None:
        pytest.skip("minisign is not installed")
    make_keys(tmp_path / "k", tmp_path / "k.pub")
    (tmp_path / "f").write_bytes(b"content")
    sign(tmp_path / "f", tmp_path / "k", "ours")
    done = subprocess.run([minisign, "-Vm", "f", "-p", "k.pub"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Trusted comment: ours" in done.stdout


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    make_keys(tmp_path / "k", tmp_path / "k.pub")
    assert (tmp_path / "k").stat().st_mode & 0o077 == 0
    with pytest.raises(OutputError, match="never overwritten"):
        make_keys(tmp_path / "k", tmp_path / "k.pub")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no secret key"),
        ("x", "no secret key"),
        ("untrusted comment: k\nAAAA\n", "no secret key"),
        (f"untrusted comment: k\n{PUBLIC}\n", "no secret key"),
        (f"untrusted comment: k\n{SECRET.replace('RWQAAEIy', 'RWRTY0Iy')}\n", "has a password"),
        (f"untrusted comment: k\n{SECRET[:-8]}AAAAAAE=\n", "damaged"),
    ],
)
def test_what_is_no_usable_secret_key_is_a_clean_error(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "k").write_text(text)
    (tmp_path / "f").write_bytes(b"content")
    with pytest.raises(OutputError, match=problem):
        sign(tmp_path / "f", tmp_path / "k", "")


@pytest.mark.parametrize("given", ["", "nonsense", "AAAA", SECRET, "/dev/null", "x" * 5000])
def test_what_is_no_public_key_is_a_clean_error(given: str) -> None:
    with pytest.raises(OutputError, match="no public key"):
        read_public(given)


def test_an_audit_is_signed_and_a_forgery_found(audited: Path, tmp_path: Path) -> None:
    shutil.copytree(audited / "out", tmp_path / "out")
    out, key = tmp_path / "out", tmp_path / "me.key"
    unsigned = ["verify", str(out), "--no-model", "--quiet", "--public-key"]
    assert call("keygen", str(key)).exit_code == 0
    assert call(*unsigned, f"{key}.pub").exit_code == 1
    assert call("sign", str(out), "--key", str(key)).exit_code == 0
    assert call(*unsigned, f"{key}.pub").exit_code == 0
    forge(out)
    assert call("verify", str(out), "--no-model", "--quiet").exit_code == 0
    done = call(*unsigned, f"{key}.pub")
    assert done.exit_code == 1
    assert "does not fit the file" in done.stdout
    assert call("sign", str(out), "--key", str(tmp_path / "absent")).exit_code == 2


def forge(out: Path) -> None:
    """Renames the audit and renews every digest and the report, so that the record agrees with itself."""
    record = read_record(out).model_copy(update={"name": "forged"})
    path = write_record(record, out / "audit.json")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (out / "audit.json.sha256").write_text(f"{digest}  audit.json\n")
    render(record, out)
