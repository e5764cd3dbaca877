"""Objects of S3-speaking stores: verified, resumable, whole or not at all.

An address is `s3://bucket/key`, or `minio://bucket/key` as Kubeflow Pipelines writes it. Endpoint
(`AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_S3`), region, certificates (`AWS_CA_BUNDLE`) and credentials
come from the environment, a profile, or the role of a pod or node, as boto3 finds them.

A download reads ranges side by side into a hidden file beside its target, keeps on disk which of
them are there, and goes on with the rest when it is started again. What arrived is compared with
the SHA-256 that `upload` left with the object, else with the checksum or MD5 the store keeps; only
then it takes the name of the target.
"""

import base64
import errno
import hashlib
import json
import os
import re
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backburn.components.shared.errors import InputError, StorageError
from backburn.components.shared.watchdog import sign_of_life

SCHEMES = ("s3", "minio")
_ADDRESS = re.compile(r"\w+://([A-Za-z0-9][A-Za-z0-9._-]{1,254})/(.+)")
_SHA256 = "sha256"
_MISSING = ("NoSuchKey", "404", "NotFound")
_CHUNK = 1 << 20
_MULTIPART = 64 << 20


@dataclass(frozen=True)
class Transfer:
    """How objects are moved."""

    part_bytes: int = 16 << 20
    threads: int = 8
    attempts: int = 5
    """Of each request, with growing pauses."""
    seconds: float = 30.0
    """A connection that says nothing for so long is given up."""
    whole_attempts: int = 3
    """Of a download whose content turns out wrong."""


@dataclass
class _Remote:
    """An object as the store describes it."""

    uri: str
    bucket: str
    key: str
    size: int
    etag: str
    head: dict[str, Any] = field(repr=False)


def is_remote(uri: str) -> bool:
    """Whether an address is one of an object store."""
    return "://" in uri and uri.partition("://")[0] in SCHEMES


def bucket_and_key(uri: str) -> tuple[str, str]:
    """The two parts of an object's address.

    Raises:
        InputError: if it has another form.
    """
    found = _ADDRESS.fullmatch(uri) if is_remote(uri) else None
    if found is None:
        raise InputError(f"{uri}: expected s3://bucket/key")
    return found[1], found[2]


def download(uri: str, target: Path, transfer: Transfer = Transfer()) -> None:
    """Copy an object to a file, whole and verified, or not at all.

    Args:
        uri: Address of the object.
        target: File to write; what is already there of an interrupted download is used.
        transfer: How.

    Raises:
        InputError: if there is no such object, or it may not be read.
        StorageError: if it cannot be had whole: the store does not answer, the disk is full, or
            what arrives is not what the store says it has.
    """
    client, bucket, key = _client(uri, transfer)
    with _explained(uri):
        head = client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        remote = _Remote(uri, bucket, key, head["ContentLength"], head["ETag"], head)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        state = target.with_name(f".{target.name}.part.json")
        _require_space(remote, part)
        for _ in range(transfer.whole_attempts):
            _fetch_missing(client, remote, part, state, transfer)
            wrong = _difference(client, remote, part)
            if wrong is None:
                part.replace(target)
                state.unlink(missing_ok=True)
                return
            part.unlink()
            state.unlink()
    raise StorageError(
        f"{uri}: {wrong}, {transfer.whole_attempts} times. The store or what lies between damages "
        "it; nothing was kept"
    )


def download_folder(uri: str, target: Path, transfer: Transfer = Transfer()) -> Path:
    """Copy every object below a prefix into a local folder; see `download`.

    Files that are there with their whole size were verified by an earlier call, and are kept.

    Raises:
        InputError: if nothing lies below the prefix, it cannot be read, or a key leads out of it.
        StorageError: see `download`.
    """
    client, bucket, prefix = _client(uri.rstrip("/") + "/", transfer)
    with _explained(uri):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        items = [item for page in pages for item in page.get("Contents", [])]
    files: dict[str, Path] = {}
    for item in items:
        relative = item["Key"][len(prefix) :]
        if not relative or relative.endswith("/"):
            continue
        destination = (target / relative).resolve()
        if not destination.is_relative_to(target.resolve()):
            raise InputError(f"{uri}: object {item['Key']!r} would leave the target folder")
        if not (destination.is_file() and destination.stat().st_size == item["Size"]):
            files[item["Key"]] = destination
    if not items:
        raise InputError(f"{uri}: no objects below this prefix")
    for key, destination in files.items():
        download(f"{uri.partition('://')[0]}://{bucket}/{key}", destination, transfer)
    return target


def require_size(uri: str, size: int, most: int | None) -> None:
    """Refuse what is larger than may be read into memory.

    Args:
        uri: Of the file or object, for the error.
        size: Its bytes.
        most: Bytes it may have; None: any number.

    Raises:
        InputError: if it is too large.
    """
    if most is not None and size > most:
        raise InputError(f"{uri}: {size:,} bytes, and at most {most:,} are read")


def read(uri: str, transfer: Transfer = Transfer(), *, most: int | None = None) -> bytes:
    """Content of an object, verified; for what fits into memory.

    Raises:
        InputError: if there is no such object, it may not be read, or has more than `most` bytes.
        StorageError: if it cannot be had whole.
    """
    client, bucket, key = _client(uri, transfer)
    wrong: str | None = None
    with _explained(uri):
        for _ in range(transfer.whole_attempts):
            answer = client.get_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
            require_size(uri, answer["ContentLength"], most)
            content = bytes(answer["Body"].read())
            remote = _Remote(uri, bucket, key, answer["ContentLength"], answer["ETag"], answer)
            wrong = _mismatch(client, remote, lambda content=content: iter([content]))  # type: ignore[misc]
            if wrong is None:
                return content
    raise StorageError(f"{uri}: {wrong}, {transfer.whole_attempts} times")


def upload(source: Path, uri: str, transfer: Transfer = Transfer()) -> None:
    """Copy a file to an object, in parts if it is large; its SHA-256 goes with it.

    The object appears whole or not at all: a store shows a multipart upload when it is complete.

    Raises:
        InputError: if the store refuses.
        StorageError: if it cannot be written whole.
    """
    from boto3.s3.transfer import TransferConfig

    client, bucket, key = _client(uri, transfer)
    digest = _digest("sha256", _blocks(source))
    with _explained(uri):
        client.upload_file(
            str(source),
            bucket,
            key,
            ExtraArgs={"Metadata": {_SHA256: digest}},
            Config=TransferConfig(
                multipart_threshold=max(_MULTIPART, transfer.part_bytes),
                multipart_chunksize=max(transfer.part_bytes, 8 << 20),
                max_concurrency=transfer.threads,
            ),
        )
        head = client.head_object(Bucket=bucket, Key=key)
    stored = head.get("Metadata", {}).get(_SHA256)
    if head["ContentLength"] != source.stat().st_size or stored != digest:
        raise StorageError(f"{uri}: what the store has is not what was sent ({source})")


def delete(uri: str, transfer: Transfer = Transfer()) -> None:
    """Delete an object; nothing happens if it is gone already.

    Raises:
        InputError: if the store refuses.
        StorageError: if it does not answer.
    """
    client, bucket, key = _client(uri, transfer)
    with _explained(uri):
        client.delete_object(Bucket=bucket, Key=key)


def _client(uri: str, transfer: Transfer) -> tuple[Any, str, str]:
    from boto3.session import Session  # not needed for local files
    from botocore.config import Config

    bucket, key = bucket_and_key(uri)
    if uri.startswith("minio:") and not _endpoint():
        raise InputError(
            f"{uri}: set AWS_ENDPOINT_URL to the address of that store, and AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY to what it takes"
        )
    config = Config(
        retries={"mode": "standard", "total_max_attempts": transfer.attempts},
        connect_timeout=transfer.seconds,
        read_timeout=transfer.seconds,
        max_pool_connections=transfer.threads + 2,
        s3={"addressing_style": "path" if _endpoint() else "auto"},
    )
    with _explained(uri):
        return Session().client("s3", config=config), bucket, key


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn what boto3, the network and the disk say into one line with what to do."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        NoRegionError,
        PartialCredentialsError,
    )
    from botocore.exceptions import HTTPClientError as Unreachable

    where = f"at {_endpoint()}" if _endpoint() else "at AWS"
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchBucket":
            raise InputError(f"{uri}: there is no such bucket {where}") from error
        if code in _MISSING:
            raise InputError(f"{uri}: there is no such object {where}") from error
        if code == "PreconditionFailed":
            raise StorageError(f"{uri}: was replaced while it was read; start again") from error
        if status in (400, 401, 403):
            raise InputError(
                f"{uri}: the store {where} refuses ({code}): check the credentials, and that they "
                "may list, read, write and delete there"
            ) from error
        raise StorageError(f"{uri}: the store {where} fails ({code}): try again later") from error
    except (NoCredentialsError, PartialCredentialsError, NoRegionError) as error:
        raise InputError(
            f"{uri}: {error}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or "
            "give the pod or node a role"
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageError(f"{uri}: the disk is full: {error.filename or ''}") from error
        if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
            raise InputError(f"{uri}: {error.strerror}: {error.filename}") from error
        raise StorageError(f"{uri}: the connection {where} broke: {error}; run again") from error
    except (BotoCoreError, Unreachable) as error:
        raise StorageError(
            f"{uri}: the store {where} cannot be reached: {error}. Check AWS_ENDPOINT_URL and the "
            "network, then run again"
        ) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("urllib3", "s3transfer", "boto3", "botocore"):
            raise StorageError(
                f"{uri}: the connection {where} broke: {error}; run again"
            ) from error
        raise


def _require_space(remote: _Remote, part: Path) -> None:
    there = part.stat().st_blocks * 512 if part.exists() else 0
    free = shutil.disk_usage(part.parent).free
    if remote.size - there > free:
        raise StorageError(
            f"{remote.uri}: {remote.size:,} bytes do not fit on the disk of {part.parent}, which "
            f"has {free:,} left"
        )


def _fetch_missing(
    client: Any, remote: _Remote, part: Path, state: Path, transfer: Transfer
) -> None:
    """Fetch the ranges that are not there yet; what is there is on record in `state`."""
    identity = {"etag": remote.etag, "size": remote.size, "part_bytes": transfer.part_bytes}
    done = _done(state, part, identity)
    count = -(-remote.size // transfer.part_bytes)
    lock = threading.Lock()
    handle = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.ftruncate(handle, remote.size)

        def fetch(index: int) -> None:
            first = index * transfer.part_bytes
            last = min(first + transfer.part_bytes, remote.size) - 1
            _patiently(
                transfer, lambda: _fetch_range(client, remote, first, last, handle, transfer)
            )
            with lock:
                done.add(index)
                temporary = state.with_name(f"{state.name}.new")
                temporary.write_text(json.dumps({**identity, "done": sorted(done)}))
                temporary.replace(state)

        with ThreadPoolExecutor(transfer.threads) as pool:
            tasks = [pool.submit(fetch, i) for i in range(count) if i not in done]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        os.fsync(handle)
    finally:
        os.close(handle)


def _done(state: Path, part: Path, identity: dict[str, Any]) -> set[int]:
    """Ranges that an earlier, interrupted download of the same object left."""
    try:
        record = json.loads(state.read_text())
        if part.is_file() and {k: record.get(k) for k in identity} == identity:
            return {int(index) for index in record["done"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return set()


def _fetch_range(
    client: Any, remote: _Remote, first: int, last: int, handle: int, transfer: Transfer
) -> None:
    answer = client.get_object(
        Bucket=remote.bucket, Key=remote.key, Range=f"bytes={first}-{last}", IfMatch=remote.etag
    )
    content = answer["Body"].read()
    if len(content) != last - first + 1:
        raise StorageError(
            f"{remote.uri}: bytes {first} to {last} came as {len(content)} bytes: the store does "
            "not serve ranges as it should"
        )
    os.pwrite(handle, content, first)
    sign_of_life()


def _patiently(transfer: Transfer, request: Callable[[], None]) -> None:
    """Repeat a request whose body broke off; boto3 repeats only up to the headers."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError, ResponseStreamingError
    from tenacity import (
        Retrying,
        retry_if_exception_type,
        stop_after_attempt,
        wait_random_exponential,
    )
    from urllib3.exceptions import HTTPError

    broken = (
        HTTPClientError,
        IncompleteReadError,
        ResponseStreamingError,
        HTTPError,
        ConnectionError,
    )
    Retrying(
        retry=retry_if_exception_type((*broken, StorageError)),
        stop=stop_after_attempt(transfer.attempts),
        wait=wait_random_exponential(multiplier=min(0.5, transfer.seconds / 10), max=10),
        reraise=True,
    )(request)


def _difference(client: Any, remote: _Remote, file: Path) -> str | None:
    return _mismatch(client, remote, lambda: _blocks(file))


def _mismatch(client: Any, remote: _Remote, blocks: Callable[[], Iterator[bytes]]) -> str | None:
    """How content differs from what the store keeps of it; None: not at all.

    An ETag of 32 hexadecimal digits is the MD5 of an object that was written at once. One that ends
    with a number of parts is the MD5 of the MD5s of its parts, all but the last of the size that
    the store tells of the first. Neither holds with keys of KMS or of a customer.
    """
    expected = remote.head.get("Metadata", {}).get(_SHA256)
    if expected:
        same = _digest("sha256", blocks()) == expected
        return None if same else "its SHA-256 is another one"
    stored = remote.head.get("ChecksumCRC32")
    if stored and "-" not in stored:
        checksum = 0
        for block in blocks():
            checksum = zlib.crc32(block, checksum)
        same = base64.b64encode(checksum.to_bytes(4, "big")).decode() == stored
        return None if same else "its CRC32 is another one"
    etag = remote.etag.strip('"')
    if remote.head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerKeyMD5" in (
        remote.head
    ):
        return None  # the store keeps nothing to compare with
    if len(etag) == 32:
        return None if _digest("md5", blocks()) == etag else "its MD5 is another one"
    _, _, parts = etag.partition("-")
    if parts.isdigit():
        head = client.head_object(Bucket=remote.bucket, Key=remote.key, PartNumber=1)
        if int(head["ContentLength"]) < remote.size or int(parts) == 1:
            whole = hashlib.md5(usedforsecurity=False)
            for chunk in _rechunked(blocks(), int(head["ContentLength"])):
                whole.update(hashlib.md5(chunk, usedforsecurity=False).digest())
            same = f"{whole.hexdigest()}-{parts}" == etag
            return None if same else "the MD5 of its parts is another one"
    return None


def _digest(name: str, blocks: Iterator[bytes]) -> str:
    """Of MD5, which here finds damage and no forger, or SHA-256, as hex."""
    digest = hashlib.new(name, usedforsecurity=False)
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while block := stream.read(_CHUNK):
            yield block


def _rechunked(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    held = bytearray()
    for block in blocks:
        held += block
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)
