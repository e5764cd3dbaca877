"""Files, local or in an object store, their digests, and writes that cannot half-happen."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from backburn.components.shared import object_store
from backburn.components.shared.errors import InputError
from backburn.components.shared.parsing import one_line, parse_json


def read_bytes(uri: str, most: int | None = None) -> bytes:
    """Read a local file or an object; see `object_store`.

    Args:
        uri: Of the file or object.
        most: Bytes it may have; default: any number.

    Raises:
        InputError: if there is no such file or object, it may not be read, or is too large.
        StorageError: if an object cannot be had whole.
    """
    if object_store.is_remote(uri):
        return object_store.read(uri, most=most)
    path = Path(uri)
    if not is_file(path):
        raise InputError(f"{one_line(uri)}: no such file")
    try:
        object_store.require_size(uri, path.stat().st_size, most)
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{uri}: cannot be read: {error.strerror}") from error


def is_file(path: Path) -> bool:
    """Whether there is such a file; False for what can be no path."""
    try:
        return path.is_file()
    except OSError:  # a name that is too long, or a folder that may not be searched
        return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; False for what can be no path."""
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, or a folder that may not be searched
        return False


def read_json(path: Path) -> Any:
    """Read a JSON file that Backburn wrote.

    Raises:
        InputError: if it is missing or not JSON.
    """
    return parse_json(read_bytes(str(path)), str(path))


def delete(uri: str) -> None:
    """Delete a local file or an object; nothing happens if it is gone already.

    Raises:
        InputError: if the address is of another kind, so that nobody believes it deleted, or the
            store refuses.
        StorageError: if the store does not answer.
    """
    if object_store.is_remote(uri):
        object_store.delete(uri)
        return
    local = uri.removeprefix("file://")
    if "://" in local:
        raise InputError(
            f"{uri}: only local files and objects at s3:// or minio:// can be deleted. Use such a "
            "pipeline root, or set judges.retain_sealed to true and delete it yourself"
        )
    Path(local).unlink(missing_ok=True)


def sha256_bytes(content: bytes) -> str:
    """SHA-256 as hex."""
    return hashlib.sha256(content).hexdigest()


def sha256_text(text: str) -> str:
    """SHA-256 of the UTF-8 bytes, as hex."""
    return sha256_bytes(text.encode("utf-8"))


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, as hex, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below a folder, sorted by path."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def digests(path: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of a folder's files; of a file, its own under an empty path.

    Nothing if neither is there.
    """
    return {"": sha256_file(path)} if path.is_file() else folder_digests(path)


def model_digest(base: dict[str, str], adapter: dict[str, str]) -> str:
    """SHA-256 over the digests of base and adapter, as hex: equal weights give equal digests."""
    return sha256_text(json.dumps({"base": base, "adapter": adapter}, sort_keys=True))


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: to a temporary name beside it, then rename."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all; NaN and infinity are errors."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Content of a file that `write_json` writes."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode("utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: to a temporary name beside it, then rename.

    A device or a pipe, such as /dev/stdout, is written to as it is.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def cache_folder() -> Path:
    """Where what is made once is kept: BACKBURN_CACHE, else ~/.cache/backburn."""
    configured = os.environ.get("BACKBURN_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "backburn"
