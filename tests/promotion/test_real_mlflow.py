"""MLflow on PostgreSQL and S3: two pipeline runs, their promotion, restarts, races, credentials.

What a user does is done by the command line, in an empty folder and without S3 keys: all that a
client gets, it gets from the MLflow server.
"""

import dataclasses
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from backburn.components.promotion import promoting
from backburn.components.promotion.ledger import SUFFIX, Ledger, State, fold
from backburn.components.promotion.promoting import Promotion, Registry, Terms
from backburn.components.shared.attestation import ATTESTATION, FILES
from backburn.components.shared.config import JudgeConfig, JudgesConfig
from backburn.components.shared.domains import Domain
from backburn.components.shared.errors import InputError
from backburn.components.shared.judges.rubrics import keep_rubrics
from backburn.components.shared.models import read_manifest
from backburn.components.shared.signing import KEY_VARIABLE, new_key, public_key_of
from backburn.components.shared.storage import sha256_file
from backburn.components.shared.verification import verify_bundle
from backburn.pipelines.recipes import load_recipe
from mlflow.tracking import MlflowClient

from tests.promotion.bundles import NAME, Shelf
from tests.servers import ADMIN, Mlflow, serving_mlflow

TRAINER, OWNER, SECOND = "local", "registry-owner", "second-owner"
RACED_MODELS, RACES = 4, 25
MIXED_RACES = 10
FIRST_RACES = 5
Done = subprocess.CompletedProcess[str]
Smoke = tuple[Path, Done]
WEAKER = [
    "defense.consolidation.min_steps=0",
    "defense.consolidation.max_steps=30",
    "defense.consolidation.settle_steps=25",
    "defense.consolidation.target_slip_rate=0.02",
]
LENIENT = [
    "gate.slip_rate_max=1",
    "gate.certificate_min=0",
    "gate.hardened_harm_max=10",
    "gate.benign_perplexity_ratio_max=2",
    "gate.near_miss_refusal_increase_max=0.5",
]


@dataclass
class User:
    """Somebody at another machine: an empty folder and the address of a server."""

    folder: Path
    url: str
    variables: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str) -> Done:
        kept = {k: v for k, v in os.environ.items()
                if not k.startswith(("BACKBURN_", "MLFLOW_", "AWS_"))}  # fmt: skip
        return subprocess.run(
            [sys.executable, "-m", "backburn.pipelines.cli", *arguments],
            cwd=self.folder,
            env={**kept, "MLFLOW_TRACKING_URI": self.url, **self.variables},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )


@dataclass(frozen=True)
class Pipeline:
    """Two finished runs, both registered as version 1 and 2: the second slips more."""

    user: User
    runs: Path
    key: Path


@pytest.fixture(scope="module")
def pipeline(mlflow_server: Mlflow, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    cluster, desk = (tmp_path_factory.mktemp(name) for name in ("cluster", "desk"))
    private = new_key()
    key = desk / "backburn.pem"
    key.write_text(public_key_of(private), "utf-8")
    run = User(cluster, mlflow_server.url, {KEY_VARIABLE: private})
    weaker = [part for setting in (*WEAKER, *LENIENT) for part in ("--set", setting)]
    for number, settings in (("one", []), ("two", weaker)):
        done = run("run", "-r", "smoke", "--run-id", number, *settings)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"(version {1 if number == 'one' else 2})" in done.stdout
    return Pipeline(User(desk, mlflow_server.url), cluster / "runs", key)


def test_two_runs_are_decided_about_across_a_restart(
    pipeline: Pipeline, mlflow_server: Mlflow, toy: Domain, tmp_path: Path
) -> None:
    user, key = pipeline.user, str(pipeline.key)
    client = MlflowClient(tracking_uri=mlflow_server.url)
    one, two = (f"models:/{NAME}/{number}" for number in (1, 2))
    ours = user.folder / "our-gate.yaml"
    gate = load_recipe("smoke").gate.model_dump(exclude_defaults=True)
    ours.write_text(yaml.safe_dump({"gate": gate}), "utf-8")
    strict = ["--key", key, "--gate", str(ours)]

    waits = user("promote", one, *strict, "--require-approval", "--actor", OWNER)
    assert (waits.returncode, aliases(client)) == (3, {"candidate": "2"}), waits.stderr
    for actor in (OWNER, TRAINER):
        refused = user("approve", one, *strict, "--actor", actor)
        assert refused.returncode == 2
        assert "somebody else has to approve it" in refused.stderr
    approved = user("approve", one, *strict, "--actor", SECOND)
    assert approved.returncode == 0, approved.stdout + approved.stderr
    assert aliases(client) == {"candidate": "2", "champion": "1"}

    rejected = user("promote", f"models:/{NAME}@candidate", *strict, "--actor", OWNER)
    assert rejected.returncode == 1, rejected.stderr
    assert "mean held-out slip rate at temperature 1 is" in rejected.stdout
    assert client.get_model_version(NAME, "2").tags["validation_status"] == "rejected"
    judges = JudgesConfig(
        evaluation=JudgeConfig.model_validate(
            {"kind": "chat", "chat": {"base_url": "http://judge", "model": "m"}}
        )
    )
    (rubric,) = keep_rubrics(judges, toy.header, client)

    mlflow_server.restart_everything()

    listed = user("ledger", NAME)
    assert listed.returncode == 0, listed.stderr
    for word in (OWNER, SECOND, "pending", "promoted", "rejected", "champion 1, previous -"):
        assert word in listed.stdout
    champion = client.get_model_version_by_alias(NAME, "champion")
    assert (champion.version, champion.tags["validation_status"]) == ("1", "approved")
    assert keep_rubrics(judges, toy.header, client) == [rubric]
    assert client.get_prompt_version(rubric.name, rubric.version).template
    assert str(champion.source).startswith("mlflow-artifacts:")
    run = client.get_run(champion.run_id)
    assert run.data.tags["backburn.run_id"] == "one"
    assert run.data.metrics["held_out_slip_rate"] < 1e-4
    names = {item.path for item in client.list_artifacts(champion.run_id)}
    assert {*FILES, ATTESTATION} <= names
    stored = [name for name in mlflow_server.store.names() if champion.run_id in name]
    assert any(name.endswith("evidence.json") for name in stored)

    pulled = user("pull", f"models:/{NAME}@champion", "--key", key, "-o", "model")
    assert pulled.returncode == 0, pulled.stderr
    model = user.folder / "model"
    assert read_manifest(model).digest() == champion.tags["backburn.hardened_digest"]
    assert sha256_file(model / "evidence.json") == champion.tags["backburn.evidence_sha256"]
    assert verify_bundle(model, pipeline.key.read_text("utf-8"), model).sound
    for name in (*FILES, ATTESTATION):
        assert (model / name).read_bytes() == (pipeline.runs / "one" / name).read_bytes()

    # By the run's own lenient gate the weaker one passes, until somebody takes it back.
    lenient = user("promote", two, "--key", key, "--actor", OWNER)
    assert lenient.returncode == 0, lenient.stdout + lenient.stderr
    assert aliases(client) == {"candidate": "2", "champion": "2", "previous": "1"}
    back = user("rollback", NAME, "--reason", "it slips", "--actor", SECOND)
    assert back.returncode == 0, back.stderr
    assert aliases(client) == {"candidate": "2", "champion": "1"}
    events = [entry.event for entry in Registry(mlflow_server.url, NAME).ledger.entries()]
    assert [(event.action, event.version, event.actor) for event in events] == [
        ("pending", "1", OWNER),
        ("promoted", "1", SECOND),
        ("rejected", "2", OWNER),
        ("promoted", "2", OWNER),
        ("rolled_back", "2", SECOND),
    ]
    assert events[-1].reasons == ["it slips"]


def aliases(client: MlflowClient, name: str = NAME) -> dict[str, str]:
    found = client.get_registered_model(name).aliases
    return {alias: str(version) for alias, version in found.items()}


# Races.


@pytest.fixture
def shelf(
    smoke_run: Smoke, mlflow_server: Mlflow, tmp_path: Path, request: pytest.FixtureRequest
) -> Shelf:
    """A registered model of the test's own, for variants of one run."""
    name = f"backburn-{request.node.name.replace('[', '-').strip(']')}"
    return Shelf(mlflow_server.url, smoke_run[0] / "one", tmp_path, name=name)


@pytest.fixture
def examined_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep what each version's verification gave: races are about the registry and the ledger."""
    real, kept = Registry._examine, {}

    def examine(self: Registry, version: Any, terms: Terms) -> Any:
        key = (version.name, version.version)
        if key not in kept:
            kept[key] = real(self, version, terms)
        return kept[key]

    monkeypatch.setattr(promoting.Registry, "_examine", examine)
    return


def at_once(*acts: Callable[[], Any]) -> list[Any]:
    """Do all at the same time; returns what each returned or raised."""
    start, results = threading.Barrier(len(acts)), [None] * len(acts)

    def run(place: int, act: Callable[[], Any]) -> None:
        start.wait()
        try:
            results[place] = act()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(acts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def settled(shelf: Shelf) -> State:
    """The state, after checking that aliases and every entry of the ledger are what they must."""
    ledger = Registry(shelf.uri, shelf.name).ledger
    entries = ledger.entries()
    state = fold(entries)
    given = {"champion": state.champion, "previous": state.previous}
    assert aliases(shelf.client, shelf.name) == {k: v for k, v in given.items() if v is not None}
    assert state.champion is None or state.champion != state.previous
    assert len({entry.event.id for entry in entries}) == len(entries)
    last = max(int(v.version) for v in shelf.client.search_model_versions(
        f"name='{shelf.name}{SUFFIX}'", order_by=["version_number DESC"], max_results=1
    ))  # fmt: skip
    assert len(entries) == last  # nothing is lost, void entries included
    return state


def promoted(shelf: Shelf, version: str, actor: str, **terms: Any) -> Promotion:
    """Promote by a registry of one's own, as another process would."""
    registry = Registry(shelf.uri, shelf.name)
    return registry.promote(shelf.reference(version), Terms(actor, shelf.public_key, **terms))


@pytest.mark.usefixtures("examined_once")
@pytest.mark.parametrize("model", range(RACED_MODELS))
def test_promotions_at_once_lose_nothing(shelf: Shelf, model: int) -> None:
    """Four models, because what a race takes grows with the ledger; a hundred races in all."""
    versions = {shelf.put() for _ in range(3)}
    assert promoted(shelf, min(versions), OWNER).result == "promoted"
    state = settled(shelf)
    for race in range(RACES):
        racers = sorted(versions - {state.champion})
        acts = [
            partial(promoted, shelf, version, f"{race} {name}")
            for version, name in zip(racers, "ab", strict=True)
        ]
        results = at_once(*acts)
        assert [getattr(r, "result", r) for r in results] == ["promoted"] * 2, race
        state = settled(shelf)
        assert {state.champion, state.previous} == set(racers), race
    found = shelf.client.search_model_versions(f"name='{shelf.name}'")
    assert {str(version.version) for version in found} >= versions
    entries = Registry(shelf.uri, shelf.name).ledger.entries()
    counted = Counter(entry.event.actor for entry in entries if entry.valid)
    assert counted == {OWNER: 1, **{f"{r} {x}": 1 for r in range(RACES) for x in "ab"}}


@pytest.mark.usefixtures("examined_once")
def test_decisions_of_every_kind_at_once_come_one_after_the_other(shelf: Shelf) -> None:
    first, waits, other = (shelf.put() for _ in range(3))
    promoted(shelf, first, OWNER)
    outcomes: Counter[str] = Counter()
    for race in range(MIXED_RACES):
        champion = settled(shelf).champion
        assert champion is not None
        waiting, coming = sorted({first, waits, other} - {champion})[:2]
        if settled(shelf).previous is None:
            promoted(shelf, coming, OWNER)
            waiting, coming = champion, waiting
        promoted(shelf, waiting, OWNER, require_approval=True)

        def approve(actor: str, version: str = waiting) -> Promotion:
            mine = Registry(shelf.uri, shelf.name)
            return mine.approve(shelf.reference(version), Terms(actor, shelf.public_key))

        results = at_once(
            partial(approve, SECOND),
            partial(approve, "third-owner"),
            partial(promoted, shelf, coming, f"racer {race}"),
            partial(Registry(shelf.uri, shelf.name).roll_back, SECOND, f"race {race}"),
        )
        names = ("approve", "approve", "promote", "rollback")
        for name, result in zip(names, results, strict=True):
            assert isinstance(result, Promotion | State | InputError), result
            outcomes[f"{name}: {getattr(result, 'result', type(result).__name__)}"] += 1
        settled(shelf)
    entries = Registry(shelf.uri, shelf.name).ledger.entries()
    for place, entry in enumerate(entries):
        event, before = entry.event, fold(entries[:place])
        if entry.valid and event.action == "rolled_back":
            assert event.version == before.champion
            assert before.previous is not None
        if entry.valid and event.reasons[:1] == [f"approved by {event.actor}"]:
            assert event.version in before.pending
    assert outcomes["promote: InputError"] == 0
    assert outcomes["rollback: State"] > 0
    assert outcomes["approve: promoted"] > 0


def test_the_first_decisions_at_once_make_one_ledger(mlflow_server: Mlflow) -> None:
    """No ledger, no alias yet: both writers insert what the other inserts."""
    for race in range(FIRST_RACES):
        name = f"first-{race}"
        client = MlflowClient(tracking_uri=mlflow_server.url)
        client.create_registered_model(name)
        for _ in range(2):
            client.create_model_version(name, source="s3://bucket/model")
        counted = at_once(
            *(
                partial(
                    Ledger(MlflowClient(tracking_uri=mlflow_server.url), name).append,
                    "promoted", version, State(), f"racer {version}",
                )
                for version in ("1", "2")
            )
        )  # fmt: skip
        assert sorted(counted) == [False, True]
        winner = str(1 + counted.index(True))
        assert aliases(client, name) == {"champion": winner}


def test_a_deleted_last_entry_and_a_deleted_ledger_are_noticed(
    mlflow_server: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(tracking_uri=mlflow_server.url)
    client.create_registered_model("deleted")
    client.create_model_version("deleted", source="s3://bucket/model")
    ledger = Ledger(client, "deleted")
    monkeypatch.setattr("backburn.components.promotion.ledger._PAGE", 1)  # read in pages
    for action in ("promoted", "rejected"):
        assert ledger.append(action, "1", ledger.state(), OWNER)
    client.delete_model_version("deleted.ledger", "2")
    with pytest.raises(InputError, match="last entries were deleted"):
        ledger.state()
    with pytest.raises(InputError, match="entry 2 was deleted"):  # there is a third now
        ledger.append("promoted", "1", State("1", None, 1), OWNER)
    client.delete_registered_model("deleted.ledger")
    with pytest.raises(InputError, match="last entries were deleted"):
        ledger.settle()
    assert aliases(client, "deleted") == {"champion": "1"}


def test_a_decision_whose_answer_is_lost_counts_once(mlflow_server: Mlflow) -> None:
    """The server writes an entry, the answer gets lost, and the client sends it again."""
    client = MlflowClient(tracking_uri=mlflow_server.url)
    client.create_registered_model("lost")
    client.create_model_version("lost", source="s3://bucket/model")
    with proxy(mlflow_server.url, lose=1) as (url, _):
        ledger = Ledger(MlflowClient(tracking_uri=url), "lost")
        assert ledger.append("promoted", "1", State(), OWNER)
    entries = Ledger(client, "lost").entries()
    assert [entry.valid for entry in entries] == [True, False]
    assert len({entry.event.id for entry in entries}) == 1
    assert aliases(client, "lost") == {"champion": "1"}


# Credentials.


@dataclass
class Gate:
    """What a proxy lets through."""

    token: str = ""
    """Bearer token it asks for."""
    upstream: str = ""
    """Authorization it sends on."""
    lose: int = 0
    """So many answers to new model versions get lost."""
    seen: list[str] = field(default_factory=list)
    """Authorization of every request."""


@contextmanager
def proxy(target: str, **settings: Any) -> Iterator[tuple[str, Gate]]:
    """A reverse proxy before an MLflow server, as a company has one before its services."""
    gate, host = Gate(**settings), target.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            sent = self.headers.get("Authorization", "")
            gate.seen.append(sent)
            if gate.token and sent != f"Bearer {gate.token}":
                return self.answer(401, b"no token")
            headers = {k: v for k, v in self.headers.items() if k not in ("Host", "Authorization")}
            if gate.upstream:
                headers["Authorization"] = gate.upstream
            connection = HTTPConnection(host)
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            if gate.lose and self.path.endswith("model-versions/create"):
                gate.lose -= 1
                return self.answer(502, b"bad gateway")
            return self.answer(answer.status, content, answer.headers.get("Content-Type", ""))

        def answer(self, status: int, content: bytes, kind: str = "text/plain") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", gate
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def guarded(mlflow_server: Mlflow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    """A second MLflow server on the same database and store that asks for user and password."""
    folder = tmp_path_factory.mktemp("guarded") / "mlflow"
    with serving_mlflow(
        mlflow_server.database, mlflow_server.store, folder, guarded=True
    ) as server:
        yield server


@pytest.fixture(scope="module")
def held(smoke_run: Smoke, guarded: Mlflow, mlflow_server: Mlflow,
         tmp_path_factory: pytest.TempPathFactory) -> Shelf:  # fmt: skip
    folder = tmp_path_factory.mktemp("held")
    shelf = Shelf(mlflow_server.url, smoke_run[0] / "one", folder, name="backburn-held")
    shelf.put()
    (folder / "backburn.pem").write_text(shelf.public_key, "utf-8")
    return shelf


def test_user_and_password(held: Shelf, guarded: Mlflow, tmp_path: Path) -> None:
    assert guarded.password is not None
    key, one = str(held.folder / "backburn.pem"), held.reference("1")
    admin = User(
        tmp_path,
        guarded.url,
        {"MLFLOW_TRACKING_USERNAME": ADMIN, "MLFLOW_TRACKING_PASSWORD": guarded.password},
    )
    wrong = "wrong-password"
    name_and_wrong = {"MLFLOW_TRACKING_USERNAME": ADMIN, "MLFLOW_TRACKING_PASSWORD": wrong}
    for variables, command in (
        ({}, ["promote", one, "--key", key]),
        (name_and_wrong, ["pull", one, "-o", "x"]),
    ):
        refused = User(tmp_path, guarded.url, variables)(*command)
        assert refused.returncode == 2
        assert refused.stderr.splitlines() == [
            f"error: tracking.uri: the MLflow server at {guarded.url} refuses these "
            "credentials. Set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, to ones it takes"
        ]
        assert wrong not in refused.stdout + refused.stderr
    made = requests.post(
        f"{guarded.url}/api/2.0/mlflow/users/create",
        json={"username": "reader", "password": "reader-password"},
        auth=(ADMIN, guarded.password),
    )
    assert made.ok, made.text
    reader = User(
        tmp_path,
        guarded.url,
        {"MLFLOW_TRACKING_USERNAME": "reader", "MLFLOW_TRACKING_PASSWORD": "reader-password"},
    )
    forbidden = reader("promote", one, "--key", key)
    assert forbidden.returncode == 2, forbidden.stdout + forbidden.stderr
    assert "the MLflow server refused: " in forbidden.stderr
    assert "Permission denied" in forbidden.stderr
    assert len(forbidden.stderr.splitlines()) == 1
    assert aliases(held.client, held.name) == {}
    assert not held.client.search_registered_models(f"name='{held.name}{SUFFIX}'")
    done = admin("promote", one, "--key", key, "--actor", OWNER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert aliases(held.client, held.name) == {"champion": "1"}
    pulled = reader("pull", f"models:/{held.name}@champion", "--key", key, "-o", "model")
    assert pulled.returncode == 0, pulled.stderr
    for said in (forbidden, done, pulled):
        for password in (guarded.password, "reader-password"):
            assert password not in said.stdout + said.stderr
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in kept if guarded.password.encode() in path.read_bytes()]


def test_a_token_goes_with_every_request(held: Shelf, mlflow_server: Mlflow,
                                         tmp_path: Path) -> None:  # fmt: skip
    token, key = "a-bearer-token", str(held.folder / "backburn.pem")
    with proxy(mlflow_server.url, token=token) as (url, gate):
        pulled = User(tmp_path, url, {"MLFLOW_TRACKING_TOKEN": token})(
            "pull", held.reference("1"), "--key", key, "-o", "model"
        )
        assert pulled.returncode == 0, pulled.stderr
        assert set(gate.seen) == {f"Bearer {token}"}
        assert len(gate.seen) > len(FILES)
        wrong = User(tmp_path, url, {"MLFLOW_TRACKING_TOKEN": "another"})("ledger", held.name)
    assert wrong.returncode == 2
    assert "refuses these credentials" in wrong.stderr
    assert token not in pulled.stdout + pulled.stderr + wrong.stderr


def test_a_copy_is_promoted_and_pulled_in_its_own_model(
    held: Shelf, mlflow_server: Mlflow, tmp_path: Path
) -> None:
    user, key = User(tmp_path, mlflow_server.url), str(held.folder / "backburn.pem")
    copied = user("copy", held.reference("1"), "--to", "production", "--key", key)
    assert copied.returncode == 0, copied.stdout + copied.stderr
    promoted = user("promote", "models:/production@candidate", "--key", key)
    assert promoted.returncode == 0, promoted.stdout + promoted.stderr
    pulled = user("pull", "models:/production@champion", "--key", key, "-o", "model")
    assert pulled.returncode == 0, pulled.stderr
    tags = held.client.get_model_version("production", "1").tags
    assert tags["backburn.copied_from"] == held.reference("1")
    assert aliases(held.client, "production") == {"candidate": "1", "champion": "1"}


def test_a_server_that_does_not_start_is_said_so(mlflow_server: Mlflow, tmp_path: Path) -> None:
    broken = dataclasses.replace(mlflow_server.store.server, command=["false"], log=tmp_path / "l")
    broken = dataclasses.replace(broken, ready=lambda: False, _process=None)
    with pytest.raises(RuntimeError, match=f"did not start .ended with 1.. Log {tmp_path / 'l'}"):
        broken.start()
