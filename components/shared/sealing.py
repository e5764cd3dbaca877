"""Raw completions at rest: encrypted, with a key that only the environment knows.

BACKBURN_SEAL_KEY comes from a Kubernetes Secret; the local runner makes one for the run and forgets
it.
"""

import json
import os
from pathlib import Path
from typing import Any

from backburn.components.shared.errors import ContainmentError, InputError
from backburn.components.shared.parsing import parse_json
from backburn.components.shared.storage import read_bytes, write_bytes
from cryptography.fernet import Fernet, InvalidToken

KEY_VARIABLE = "BACKBURN_SEAL_KEY"


def new_key() -> str:
    """A fresh key, URL-safe base64 of 32 random bytes."""
    return Fernet.generate_key().decode()


def seal(path: Path, records: list[dict[str, Any]]) -> None:
    """Encrypt records into a file, whole or not at all; clear text never touches the disk.

    Raises:
        ContainmentError: if no usable key is in the environment.
    """
    write_bytes(path, seal_text(json.dumps(records)).encode())


def open_sealed(path: Path) -> list[dict[str, Any]]:
    """Decrypt what `seal` wrote.

    Raises:
        ContainmentError: if the key is missing or wrong, or the file was changed.
        InputError: if there is no such file, or it holds something else.
    """
    records = parse_json(_opened(read_bytes(str(path)), path.name), path.name)
    if not isinstance(records, list) or not all(isinstance(item, dict) for item in records):
        raise InputError(f"{path.name}: sealed, but no list of records; was it made by Backburn?")
    return records


def seal_text(text: str) -> str:
    """Encrypt a text; the outcome is ASCII.

    Raises:
        ContainmentError: if no usable key is in the environment.
    """
    return _cipher().encrypt(text.encode()).decode("ascii")


def open_text(sealed: str | bytes, name: str) -> str:
    """Decrypt what `seal_text` encrypted.

    Args:
        sealed: The encrypted text.
        name: Of what it is, for the error.

    Raises:
        ContainmentError: if the key is missing or wrong, or the text was changed.
    """
    return _opened(sealed, name).decode()


def _opened(sealed: str | bytes, name: str) -> bytes:
    try:
        return _cipher().decrypt(sealed)
    except InvalidToken as error:
        raise ContainmentError(
            f"{name}: the seal does not open: {KEY_VARIABLE} is not the key it was sealed with, or "
            "it was changed"
        ) from error


def require_key() -> None:
    """Fail early when nothing could be sealed.

    Raises:
        ContainmentError: if no usable key is in the environment.
    """
    _cipher()


def _cipher() -> Fernet:
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        raise ContainmentError(
            f"{KEY_VARIABLE} is not set: raw completions cannot be sealed, so nothing is "
            f"generated. Put a "
            "key into the run's Secret (make one with `backburn seal-key`)"
        )
    return check_key(key)


def check_key(key: str) -> Fernet:
    """The cipher of a key.

    Raises:
        ContainmentError: if it is no key.
    """
    try:
        return Fernet(key)
    except ValueError as error:
        raise ContainmentError(
            f"{KEY_VARIABLE} is not a key (URL-safe base64 of 32 bytes); make one with `backburn "
            f"seal-key`"
        ) from error
