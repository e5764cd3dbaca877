"""Transfers with a real S3 server, as it is and behind a proxy that breaks its answers."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import boto3
import pytest
from backburn.components.shared import object_store, storage, watchdog
from backburn.components.shared.config import ModelConfig
from backburn.components.shared.errors import BackburnError, InputError, StorageError
from backburn.components.shared.models import resolve_base
from backburn.components.shared.object_store import Transfer

from tests.servers import BUCKET, ObjectStore, serving_objects
from tests.shared.storage.faulty_proxy import FaultyProxy, faulty_proxy

QUICK = Transfer(part_bytes=64 << 10, threads=4, attempts=4, seconds=0.5)
_TRANSFERS = 200


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with serving_objects(tmp_path_factory.mktemp("objects")) as running:
        yield running


@pytest.fixture
def plain(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server's own address; gives a client that is not ours."""
    for name, value in {**store.environment, "AWS_ENDPOINT_URL": store.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return boto3.client("s3")


@pytest.fixture
def proxy(store: ObjectStore, plain: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with faulty_proxy(store.port, seconds=1.5) as (faulty, url):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield faulty


def content(size: int, seed: int = 0) -> bytes:
    return Random(seed).randbytes(size)


def failed(move: Callable[..., None], *arguments: Any) -> str | None:
    """Why a transfer failed, if it did."""
    try:
        move(*arguments, QUICK)
    except BackburnError as error:
        return str(error)
    return None


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("size", [0, 1, 64 << 10, (64 << 10) + 1, 1_000_003])
def test_what_goes_up_comes_down(plain: Any, tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "down" / "target"
    source.write_bytes(content(size))
    uri = f"s3://{BUCKET}/round trip/é {size}"
    object_store.upload(source, uri, QUICK)
    object_store.download(uri, target, QUICK)
    assert target.read_bytes() == source.read_bytes()
    assert leftovers(target.parent) == ["target"]
    assert object_store.read(uri, QUICK) == source.read_bytes()
    object_store.delete(uri)
    object_store.delete(uri)
    with pytest.raises(InputError, match="no such object"):
        object_store.read(uri, QUICK)


def test_two_hundred_transfers_through_a_faulty_network(
    proxy: FaultyProxy, plain: Any, tmp_path: Path
) -> None:
    """Each is right or fails with a reason of one line; none is silently wrong."""
    random = Random(7)
    outcomes: Counter[str] = Counter()
    proxy.share = 0.15
    for number in range(_TRANSFERS):
        data = content(random.choice([0, 10, 3_000, 70_000, 300_000, 700_000]), number)
        name, file = f"faulty/{number}", tmp_path / f"{number}"
        if number % 2:
            digest = {"sha256": hashlib.sha256(data).hexdigest()} if number % 4 == 1 else {}
            plain.put_object(Bucket=BUCKET, Key=name, Body=data, Metadata=digest)
            failure = failed(object_store.download, f"s3://{BUCKET}/{name}", file)
            moved = file.read_bytes() if file.exists() else None
        else:
            file.write_bytes(data)
            failure = failed(object_store.upload, file, f"s3://{BUCKET}/{name}")
            moved = None
            if failure is None:
                moved = plain.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        outcomes["failed" if failure else "right"] += 1
        assert moved == (None if failure else data), f"transfer {number} is silently wrong"
        if failure:
            assert failure.startswith(f"s3://{BUCKET}/{name}: ")
            assert "\n" not in failure
    print(f"{dict(outcomes)}; faults: {dict(proxy.done)}")
    assert set(proxy.done) == set(proxy.faults)
    assert outcomes["right"] >= 0.75 * _TRANSFERS


@pytest.mark.parametrize("fault", ["truncated", "wrong_bytes", "unavailable", "reset"])
@pytest.mark.parametrize("told", [True, False], ids=["SHA-256 told", "MD5 alone"])
def test_a_store_that_is_always_wrong_is_never_believed(
    proxy: FaultyProxy, plain: Any, tmp_path: Path, fault: str, told: bool
) -> None:
    data = content(200_000)
    metadata = {"sha256": hashlib.sha256(data).hexdigest()} if told else {}
    plain.put_object(Bucket=BUCKET, Key="always", Body=data, Metadata=metadata)
    proxy.share, proxy.faults = 1.0, (fault,)
    with pytest.raises(StorageError, match=f"^s3://{BUCKET}/always: "):
        object_store.download(f"s3://{BUCKET}/always", tmp_path / "file", QUICK)
    assert not (tmp_path / "file").exists()


def test_wrong_parts_of_a_multipart_object_are_noticed(
    proxy: FaultyProxy, plain: Any, tmp_path: Path
) -> None:
    part, uri = 5 << 20, f"s3://{BUCKET}/multipart"
    data = content(2 * part + 17)
    begun = plain.create_multipart_upload(Bucket=BUCKET, Key="multipart")["UploadId"]
    which = {"Bucket": BUCKET, "Key": "multipart", "UploadId": begun}
    parts = [
        {
            "PartNumber": number + 1,
            "ETag": plain.upload_part(
                **which, PartNumber=number + 1, Body=data[number * part : (number + 1) * part]
            )["ETag"],
        }
        for number in range(3)
    ]
    plain.complete_multipart_upload(**which, MultipartUpload={"Parts": parts})
    object_store.download(uri, tmp_path / "right", Transfer())
    assert (tmp_path / "right").read_bytes() == data
    proxy.share, proxy.faults = 1.0, ("wrong_bytes",)
    with pytest.raises(StorageError, match=r"MD5|CRC32"):
        object_store.download(uri, tmp_path / "wrong", Transfer(attempts=1))


def test_a_killed_download_goes_on_where_it_was(
    proxy: FaultyProxy, store: ObjectStore, plain: Any, tmp_path: Path
) -> None:
    data, target = content(3_000_000), tmp_path / "file"
    plain.put_object(Bucket=BUCKET, Key="large", Body=data)
    program = (
        "import sys; from pathlib import Path; "
        "from backburn.components.shared.object_store import Transfer, download; "
        f"download('s3://{BUCKET}/large', Path(sys.argv[1]), "
        "Transfer(part_bytes=65536, threads=1, seconds=0.5))"
    )
    proxy.share, proxy.faults, proxy.seconds = 0.5, ("slow",), 0.2
    process = subprocess.Popen([sys.executable, "-c", program, str(target)])
    state = target.with_name(".file.part.json")
    while not state.exists() or state.stat().st_size < 100:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not target.exists()
    before = len(json.loads(state.read_text())["done"])
    proxy.share = 0.0
    asked: list[str] = []
    original = object_store._fetch_range

    def counted(client: Any, remote: Any, first: int, *rest: Any) -> None:
        asked.append(str(first))
        original(client, remote, first, *rest)

    object_store._fetch_range = counted
    try:
        object_store.download(f"s3://{BUCKET}/large", target, QUICK)
    finally:
        object_store._fetch_range = original
    assert target.read_bytes() == data
    assert len(asked) == -(-len(data) // QUICK.part_bytes) - before
    assert leftovers(tmp_path) == ["file"]


def test_each_part_is_a_sign_of_life(
    plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain.put_object(Bucket=BUCKET, Key="alive", Body=content(200_000))
    monkeypatch.setattr(watchdog, "_last_sign", 0.0)
    object_store.download(f"s3://{BUCKET}/alive", tmp_path / "file", QUICK)
    assert watchdog._last_sign > 0.0


def test_a_replaced_object_is_not_mixed_with_the_old_one(plain: Any, tmp_path: Path) -> None:
    target = tmp_path / "file"
    plain.put_object(Bucket=BUCKET, Key="changing", Body=content(200_000, 1))
    object_store.download(f"s3://{BUCKET}/changing", target, QUICK)
    part = tmp_path / ".file.part"
    part.write_bytes(target.read_bytes())
    (tmp_path / ".file.part.json").write_text(
        '{"etag": "old", "size": 200000, "part_bytes": 65536, "done": [0, 1, 2, 3]}'
    )
    plain.put_object(Bucket=BUCKET, Key="changing", Body=content(200_000, 2))
    object_store.download(f"s3://{BUCKET}/changing", target, QUICK)
    assert target.read_bytes() == content(200_000, 2)


@pytest.mark.parametrize("record", ["", "[]", "{", '{"done": "x"}', "null"])
def test_a_damaged_record_of_an_interrupted_download_is_ignored(
    plain: Any, tmp_path: Path, record: str
) -> None:
    plain.put_object(Bucket=BUCKET, Key="record", Body=content(100_000))
    (tmp_path / ".file.part").write_bytes(b"nonsense")
    (tmp_path / ".file.part.json").write_text(record)
    object_store.download(f"s3://{BUCKET}/record", tmp_path / "file", QUICK)
    assert (tmp_path / "file").read_bytes() == content(100_000)


def test_an_interrupted_model_is_not_fetched_twice(
    plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Path
) -> None:
    monkeypatch.setenv("BACKBURN_CACHE", str(tmp_path))
    for path in tiny_base.iterdir():
        object_store.upload(path, f"s3://{BUCKET}/models/tiny/{path.name}")
    original, fetched = object_store.download, []

    def failing(uri: str, target: Path, transfer: Transfer) -> None:
        if len(fetched) == 2:
            fetched.append("failed")
            raise StorageError(f"{uri}: broke")
        fetched.append(uri)
        original(uri, target, transfer)

    monkeypatch.setattr(object_store, "download", failing)
    config = ModelConfig(id=f"s3://{BUCKET}/models/tiny")
    with pytest.raises(StorageError):
        resolve_base(config)
    folder = resolve_base(config)
    names = [path.name for path in tiny_base.iterdir()]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert len(fetched) == len(names) + 1
    assert resolve_base(config) == folder
    assert len(fetched) == len(names) + 1


def test_minio_addresses_are_deleted_too(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain.put_object(Bucket=BUCKET, Key="sealed", Body=b"x")
    storage.delete(f"minio://{BUCKET}/sealed")
    assert "Contents" not in plain.list_objects_v2(Bucket=BUCKET, Prefix="sealed")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with pytest.raises(InputError, match="set AWS_ENDPOINT_URL"):
        storage.delete(f"minio://{BUCKET}/sealed")


def test_addresses_of_other_stores_are_refused() -> None:
    with pytest.raises(InputError, match="only local files and objects at s3:// or minio://"):
        storage.delete("gs://bucket/key")


@pytest.mark.parametrize(
    ("change", "uri", "error", "reason"),
    [
        ({}, "s3://nowhere/key", InputError, "no such bucket|no such object"),
        ({}, f"s3://{BUCKET}/nowhere", InputError, "no such object"),
        ({}, f"s3://{BUCKET}", InputError, "expected s3://bucket/key"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, f"s3://{BUCKET}/a", InputError, "refuses"),
        ({"AWS_ACCESS_KEY_ID": "unknown"}, f"s3://{BUCKET}/a", InputError, "refuses"),
        (
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
            f"s3://{BUCKET}/a",
            InputError,
            "give the pod or node a role",
        ),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, f"s3://{BUCKET}/a", StorageError, "reached"),
        (
            {"AWS_ENDPOINT_URL": "https://127.0.0.1:9", "AWS_CA_BUNDLE": "/no/such/file"},
            f"s3://{BUCKET}/a",
            BackburnError,
            "/no/such/file|reached|broke",
        ),
    ],
)
def test_each_refusal_is_one_line_that_says_what_to_do(
    plain: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    change: dict[str, str | None],
    uri: str,
    error: type[Exception],
    reason: str,
) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    for name, value in change.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(error, match=reason) as raised:
        object_store.download(uri, tmp_path / "file", QUICK)
    assert "\n" not in str(raised.value)
    assert leftovers(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with 1 MiB of room: a real one for root, who may mount it, else one that says so."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() == 0:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], check=True)
        yield folder
        subprocess.run(["umount", folder], check=True)
        return

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(object_store.os, "pwrite", full)
    usage = shutil.disk_usage(folder)._replace(free=1 << 20)
    monkeypatch.setattr(object_store.shutil, "disk_usage", lambda _: usage)
    yield folder


def test_a_full_disk_is_noticed_before_and_during_a_download(
    plain: Any, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain.put_object(Bucket=BUCKET, Key="big", Body=content(3 << 20))
    with pytest.raises(StorageError, match=r"3,145,728 bytes do not fit"):
        object_store.download(f"s3://{BUCKET}/big", small_disk / "file", QUICK)
    monkeypatch.setattr(object_store, "_require_space", lambda *_: None)
    with pytest.raises(StorageError, match="the disk is full"):
        object_store.download(f"s3://{BUCKET}/big", small_disk / "file", QUICK)
    assert not (small_disk / "file").exists()


class _HostileStore(BaseHTTPRequestHandler):
    """Lists one object whose key leads out of its prefix; a real server refuses such a key."""

    def do_GET(self) -> None:
        body = (
            b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents>"
            b"<Key>prefix/a/../../../b</Key><Size>1</Size></Contents></ListBucketResult>"
        )
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_key_cannot_leave_the_folder(
    plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _HostileStore)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    try:
        with pytest.raises(InputError, match="would leave the target folder"):
            object_store.download_folder(f"s3://{BUCKET}/prefix", tmp_path / "t", QUICK)
    finally:
        server.shutdown()
        server.server_close()
    assert leftovers(tmp_path) == []
