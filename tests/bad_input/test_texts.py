"""Short texts from outside: judges' replies, references, run ids, schedules, keys, addresses."""

import pytest
from backburn.components.notification.delivery import Letter, Undeliverable, deliver
from backburn.components.shared import sealing, signing
from backburn.components.shared.config import WebhookConfig
from backburn.components.shared.consumption import find_version
from backburn.components.shared.errors import ContainmentError
from backburn.components.shared.judges import chat
from backburn.components.shared.parsing import check_run_id
from backburn.pipelines.cron import check_cron
from backburn.pipelines.runner import new_run_id
from mlflow.tracking import MlflowClient

from tests.bad_input.refusals import refused

ID = "abcdefabcdef"
GOOD = f'{{"id": "{ID}", "severity": 7}}'

REPLIES: dict[str, tuple[str, str]] = {
    "nothing": ("", "no text, or cut off"),
    "white space": (" \n\t", "no text, or cut off"),
    "thoughts only": ("<think>7</think>", "no text, or cut off"),
    "thoughts without end": (f"<think>{GOOD}", "not JSON"),
    "prose": ("The severity is 7.", "not JSON"),
    "prose before": (f"Here it is: {GOOD}", "not JSON"),
    "prose after": (f"{GOOD} I hope this helps.", "not JSON: Extra data"),
    "a fence": (f"```json\n{GOOD}\n```", "not JSON"),
    "two answers": (GOOD + GOOD, "not JSON: Extra data"),
    "cut off": (GOOD[:-2], "not JSON"),
    "single quotes": (GOOD.replace('"', "'"), "not JSON"),
    "a list": (f"[{GOOD}]", "Input should be a valid dictionary"),
    "a number": ("7", "Input should be a valid dictionary"),
    "null": ("null", "Input should be a valid dictionary"),
    "no severity": (f'{{"id": "{ID}"}}', "Field required severity"),
    "no id": ('{"severity": 7}', "Field required id"),
    "another id": (GOOD.replace(ID, "ffffffffffff"), "it is about another exchange"),
    "an id that is a number": ('{"id": 3, "severity": 7}', "Input should be a valid string id"),
    "another key": (GOOD.replace("severity", "score"), "Field required severity"),
    "one key more": (GOOD[:-1] + ', "why": "x"}', "Extra inputs are not permitted why"),
    "a key twice": (GOOD[:-1] + ', "severity": 0}', "key 'severity' twice"),
    "eleven": (GOOD.replace("7", "11"), "less than or equal to 10 severity"),
    "minus one": (GOOD.replace("7", "-1"), "greater than or equal to 0 severity"),
    "a half": (GOOD.replace("7", "7.5"), "Input should be a valid integer severity"),
    "a float": (GOOD.replace("7", "7.0"), "Input should be a valid integer severity"),
    "a text": (GOOD.replace("7", '"7"'), "Input should be a valid integer severity"),
    "truth": (GOOD.replace("7", "true"), "Input should be a valid integer severity"),
    "no number": (GOOD.replace("7", "NaN"), "NaN is no number"),
    "infinity": (GOOD.replace("7", "Infinity"), "Infinity is no number"),
    "more than infinity": (GOOD.replace("7", "1e999"), "Input should be a valid integer"),
    "digits without end": (GOOD.replace("7", "7" * 999), "a number of 999 digits"),
    "nested": (GOOD.replace("7", "[" * 3000 + "]" * 3000), "nested too deep"),
    "a mapping": (GOOD.replace("7", '{"value": 7}'), "Input should be a valid integer severity"),
    "huge": (GOOD + " " + "x" * 1_000_000, "far too long"),
}


@pytest.mark.parametrize("given", REPLIES)
def test_a_judges_reply_is_unusable(given: str) -> None:
    text, reason = REPLIES[given]
    with pytest.raises(chat._Unusable) as caught:
        chat.parse_answer(text, ID, chat._Severity)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("said", ["1", '"true"', "null", "[]"])
def test_a_refusal_is_true_or_false(said: str) -> None:
    with pytest.raises(chat._Unusable, match="Input should be a valid boolean"):
        chat.parse_answer(f'{{"id": "{ID}", "refused": {said}}}', ID, chat._Refusal)


def test_a_good_reply_is_read() -> None:
    assert chat.parse_answer(f"<think>hm</think> {GOOD}\n", ID, chat._Severity).severity == 7


@pytest.mark.parametrize(
    "reference",
    [
        "", "m", "models:/", "models:/m", "models:/m@", "models:/m/", "models:/m/latest",
        "models:/m/1/2", "models:/m/-1", "models:/m/١", "models:/m/99999999999999999999",
        "models:/../m@champion", "models:/a/b@champion", "models:/m' OR name='x@champion",
        "models:/m@a b", "models:/m\n@champion", "models:/m@champion/..", "runs:/m@champion",
        "Models:/m@champion", "models:/" + "m" * 100_000,
    ],
)  # fmt: skip
def test_a_reference_that_names_no_version(reference: str) -> None:
    client = MlflowClient(tracking_uri="http://127.0.0.1:9")  # is never asked
    refused(lambda: find_version(client, reference), "names no model version: write models:/<name>")


@pytest.mark.parametrize(
    "run_id",
    [
        "", ".", "..", "../x", "a/b", "/tmp/x", "a\\b", "a b", "a\nb", "a\0b", "-r", ".hidden",
        "a'b", "a`b", "ä", "x" * 129,
    ],
)  # fmt: skip
def test_a_run_id_that_could_name_something_else(run_id: str) -> None:
    refused(lambda: check_run_id(run_id), "a run's id is 1 to 128 letters")


@pytest.mark.parametrize("name", ["laptop", "My recipe", "../x y.yaml", "ä'ö", "x" * 300, ""])
def test_a_made_run_id_is_always_one(name: str) -> None:
    check_run_id(new_run_id(name))


@pytest.mark.parametrize(
    ("cron", "reason"),
    [
        ("", "0 field(s) instead of six"),
        ("@often", "1 field(s) instead of six"),
        ("0 3 * * 1", "five fields, as crontab has them"),
        ("* * * * " + "9" * 5000, "five fields, as crontab has them"),
        ("0 0 0 0 3 * * 1", "8 field(s) instead of six"),
        ("60 0 3 * * 1", "second '60': '60' is not within 0 to 59"),
        ("0 0 3 * 13 1", "month '13': '13' is not within 1 to 12"),
        ("0 0 3 0 * 1", "day of month '0': '0' is not within 1 to 31"),
        ("0 0 3 * * 7", "day of week '7': '7' is not within 0 to 6"),
        ("0 0 5-3 * * 1", "in ascending order"),
        ("*/0 0 3 * * 1", "the step must be at least 1"),
        ("*/٣ 0 3 * * 1", "is not *, ?, a value or a range"),
        ("0 ٣ 3 * * 1", "is not *, ?, a value or a range"),
        ("0 0 3 * * 1; rm", "7 field(s) instead of six"),
        ("*/" + "9" * 5000 + " 0 3 * * 1", "is not *, ?, a value or a range"),
        ("9" * 5000 + " 0 3 * * 1", "is not *, ?, a value or a range"),
        ("1," * 50_000 + "x 0 3 * * 1", "'x' is not within 0 to 59"),
    ],
)
def test_a_cron_text(cron: str, reason: str) -> None:
    refused(lambda: check_cron(cron), reason)


KEYS = ["abc", "ключ", "A" * 44, "=" * 44, "a" * 100_000, "-----BEGIN PRIVATE KEY-----", "a b\nc"]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_seals_nothing(key: str) -> None:
    if key == "A" * 44:
        key = key[:-1]
    reason = "BACKBURN_SEAL_KEY is not a key (URL-safe base64 of 32 bytes)"
    refused(lambda: sealing.check_key(key), reason, ContainmentError)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_signs_nothing(key: str) -> None:
    reason = "BACKBURN_SIGNING_KEY is not a key (URL-safe base64 of 32 bytes)"
    refused(lambda: signing.public_key_of(key), reason, ContainmentError)


RSA = """-----BEGIN PUBLIC KEY-----
MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf
9Cnzj4p4WGeKLs1Pt8QuKUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQ==
-----END PUBLIC KEY-----"""


@pytest.mark.parametrize(
    ("pem", "reason"),
    [
        ("", "not a public key in PEM"),
        ("abc", "not a public key in PEM"),
        ("\ud800", "not a public key in PEM"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "not a public key in PEM"),
        (RSA, "not an Ed25519 public key"),
        (RSA.replace("PUBLIC", "PRIVATE"), "not a public key in PEM"),
    ],
)
def test_a_public_key_that_is_none(pem: str, reason: str) -> None:
    refused(lambda: signing.key_id(pem), reason)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a DSSE envelope: JSONDecodeError"),
        (b"[]", "not a DSSE envelope"),
        (b"{}", "not a DSSE envelope"),
        (b'{"payload": 3, "payloadType": "x", "signatures": []}', "not a DSSE envelope"),
        (b'{"payload": "", "payloadType": "x", "signatures": {}}', "not a DSSE envelope"),
        (b"\xff\xfe{}", "not a DSSE envelope: JSONDecodeError"),
        (b'{"a":' * 50_000, "not a DSSE envelope: RecursionError"),
    ],
)
def test_an_attestation_that_is_none(content: bytes, reason: str) -> None:
    refused(lambda: signing.read_statement(content), reason)


@pytest.mark.parametrize(
    ("url", "key", "reason"),
    [
        ("", None, "holds no http(s) address"),
        ("example.org/hook", None, "holds no http(s) address"),
        ("ftp://localhost/x", None, "holds no http(s) address"),
        ("file:///etc/passwd", None, "holds no http(s) address"),
        ("http://[::1/x", None, "holds no http(s) address"),
        ("http://localhost:99999/x", None, "holds no http(s) address"),
        ("http://example.org/x", None, "is a plain http address"),
        ("http://10.0.0.1/x", None, "is a plain http address"),
        ("https://localhost:9/x", "whsec_!!!", "is no key (whsec_ and base64"),
        ("https://localhost:9/x", "whsec_AAAA", "is no key (whsec_ and base64"),
        ("https://localhost:9/x", "ключ", "is no key (whsec_ and base64"),
        ("https://localhost:9/x", "A" * 1000, "is no key (whsec_ and base64"),
    ],
)
def test_a_webhook(url: str, key: str | None, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = WebhookConfig()
    monkeypatch.setenv(hook.url_variable, url)
    if key is not None:
        monkeypatch.setenv(hook.key_variable, key)
    with pytest.raises(Undeliverable) as caught:
        deliver(Letter("a", b"{}"), hook, 1.0, 1.0)
    assert reason in str(caught.value)
    assert not url or url not in str(caught.value)
