"""Signs an audit and checks signatures, in the formats of minisign (Ed25519), so that either tool reads the other's.

A digest shows that a record was changed by accident; only a signature tells an audit from a forgery.
https://jedisct1.github.io/minisign/#signature-format
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import MissingExtraError, OutputError
from .storage import write_atomic

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SUFFIX = ".minisig"

_ALGORITHM, _PREHASHED, _NO_PASSWORD, _CHECKSUM = b"Ed", b"ED", b"\0\0", b"B2"
_SECRET_BYTES = 158
_PUBLIC_BYTES = 42


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key, 32 bytes, and the random id that minisign gives it, 8 bytes."""

    key_id: bytes
    key: bytes

    @property
    def name(self) -> str:
        """The id as minisign prints it."""
        return self.key_id[::-1].hex().upper()


def make_keys(secret: Path, public: Path) -> PublicKey:
    """Makes a key pair; the secret key is kept without a password, readable by its owner only.

    Raises:
        OutputError: when ``secret`` exists or a file cannot be written.
    """
    if secret.exists():
        raise OutputError(f"{secret} exists: a key is never overwritten; choose another name")
    seed, key_id = secrets.token_bytes(32), secrets.token_bytes(8)
    key = _public_bytes(_private(seed))
    pair = seed + key
    check = hashlib.blake2b(_ALGORITHM + key_id + pair, digest_size=32).digest()
    body = _ALGORITHM + _NO_PASSWORD + _CHECKSUM + bytes(32 + 8 + 8) + key_id + pair + check
    made = PublicKey(key_id, key)
    _write_secret(secret, f"untrusted comment: auditorch secret key {made.name}\n{_encoded(body)}\n")
    text = f"untrusted comment: minisign public key {made.name}\n{_encoded(_ALGORITHM + key_id + key)}\n"
    write_atomic(public, text.encode())
    return made


def sign(file: Path, secret: Path, comment: str) -> Path:
    """Writes ``file.minisig``; ``comment`` is signed with it.

    Raises:
        OutputError: when the key or the file cannot be read, or the signature not written.
        MissingExtraError: without the extra ``sign``.
    """
    seed, key_id = _read_secret(secret)
    key = _private(seed)
    signature = key.sign(hashlib.blake2b(_read(file)).digest())
    comment = " ".join(comment.split())
    whole = key.sign(signature + comment.encode())
    lines = [
        "untrusted comment: signature from auditorch",
        _encoded(_PREHASHED + key_id + signature),
        f"trusted comment: {comment}",
        _encoded(whole),
    ]
    place = file.with_name(file.name + SUFFIX)
    write_atomic(place, ("\n".join(lines) + "\n").encode())
    return place


def check_signature(file: Path, public: PublicKey) -> tuple[bool, str]:
    """Whether ``file.minisig`` is this key's signature of ``file``; the signed comment, or what is wrong.

    Raises:
        MissingExtraError: without the extra ``sign``.
    """
    from_key = _verifier(public.key)
    try:
        data, lines = _read(file), _read(file.with_name(file.name + SUFFIX)).decode().splitlines()
        head, whole = _decoded(lines[1]), _decoded(lines[3])
        comment = lines[2].removeprefix("trusted comment: ")
    except (OutputError, ValueError, IndexError) as error:
        return False, f"there is no readable signature ({error})"
    if len(head) != 74 or head[:2] not in (_ALGORITHM, _PREHASHED):
        return False, "the signature is not in minisign's format"
    if head[2:10] != public.key_id:
        return False, f"it was signed by another key ({head[2:10][::-1].hex().upper()})"
    signed = hashlib.blake2b(data).digest() if head[:2] == _PREHASHED else data
    if not from_key(head[10:], signed):
        return False, "the signature does not fit the file"
    if not from_key(whole, head[10:] + comment.encode()):
        return False, "the signed comment was changed"
    return True, comment


def read_public(given: str) -> PublicKey:
    """A public key from a file, or from its base64 line.

    Raises:
        OutputError: when it is neither.
    """
    try:
        text = _read(Path(given)).decode() if Path(given).is_file() else given
        body = _decoded(text.strip().splitlines()[-1])
    except (ValueError, IndexError, OSError) as error:
        raise OutputError(f"{given[:80]}: no public key of minisign, neither a file nor its last line") from error
    if len(body) != _PUBLIC_BYTES or body[:2] != _ALGORITHM:
        raise OutputError(f"{given[:80]}: no public key of minisign")
    return PublicKey(body[2:10], body[10:])


def _read_secret(path: Path) -> tuple[bytes, bytes]:
    """Seed and key id."""
    try:
        body = _decoded(_read(path).decode().splitlines()[1])
    except (ValueError, IndexError) as error:
        raise OutputError(f"{path}: no secret key of minisign") from error
    if len(body) != _SECRET_BYTES or body[:2] != _ALGORITHM:
        raise OutputError(f"{path}: no secret key of minisign")
    if body[2:4] != _NO_PASSWORD:
        raise OutputError(f"{path}: this key has a password; make one without (auditorch keygen, or minisign -G -W)")
    key_id, pair, noted = body[54:62], body[62:126], body[126:]
    # minisign leaves the checksum of a key without password empty.
    if noted not in (bytes(32), hashlib.blake2b(_ALGORITHM + key_id + pair, digest_size=32).digest()):
        raise OutputError(f"{path}: the key is damaged")
    return pair[:32], key_id


def _write_secret(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.strip(), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def _private(seed: bytes) -> Ed25519PrivateKey:
    _require()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(seed)


def _public_bytes(key: Ed25519PrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _verifier(key: bytes) -> _Verifier:
    _require()
    return _Verifier(key)


@dataclass(frozen=True, slots=True)
class _Verifier:
    """Whether a signature of some data is this key's."""

    key: bytes

    def __call__(self, signature: bytes, data: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(signature, data)
        except (InvalidSignature, ValueError):
            return False
        return True


def _require() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("signing", "sign") from error
