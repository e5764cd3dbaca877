"""Signed statements: an in-toto Statement v1 in a DSSE v1 envelope, signed with Ed25519.

BACKBURN_SIGNING_KEY comes from a Kubernetes Secret; the local runner makes one for the run and
forgets it, so that a local signature shows that files belong together and not who made them.
"""

import base64
import copy
import json
import os
from typing import Any

from backburn.components.shared.errors import ContainmentError, InputError
from backburn.components.shared.parsing import one_line
from backburn.components.shared.storage import canonical_json, json_bytes
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

KEY_VARIABLE = "BACKBURN_SIGNING_KEY"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_KEY_BYTES = 32


def new_key() -> str:
    """A fresh private key: URL-safe base64 of its 32 bytes (RFC 8032)."""
    return base64.urlsafe_b64encode(os.urandom(_KEY_BYTES)).decode()


def public_key_of(private_key: str) -> str:
    """The public key that belongs to a private one, as PEM.

    Raises:
        ContainmentError: if it is no key.
    """
    return _pem(_private(private_key).public_key())


def public_key() -> str:
    """The public key of the environment's private key, as PEM.

    Raises:
        ContainmentError: if no usable key is in the environment.
    """
    return public_key_of(_from_environment())


def key_id(public_key_pem: str) -> str:
    """Identifier of a public key, as it stands in an envelope.

    Raises:
        InputError: if it is not an Ed25519 public key in PEM.
    """
    return str(_verifier(public_key_pem).keyid)


def sign_statement(statement: dict[str, Any]) -> bytes:
    """Put a statement into a signed envelope; returns the content of a JSON file.

    Raises:
        ContainmentError: if no usable key is in the environment.
    """
    private = _private(_from_environment())
    envelope = Envelope(canonical_json(statement).encode(), PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(private))
    return json_bytes(envelope.to_dict())


def read_statement(content: bytes) -> dict[str, Any]:
    """The statement of an envelope, whoever signed it.

    Raises:
        InputError: if the content is not exactly such an envelope.
    """
    return _statement(_envelope(content))


def open_statement(content: bytes, public_key_pem: str) -> dict[str, Any]:
    """The statement of an envelope that a key has signed.

    Args:
        content: What `sign_statement` returned.
        public_key_pem: Key that must have signed.

    Raises:
        InputError: if the content is no such envelope, or this key did not sign it.
    """
    envelope = _envelope(content)
    key = _verifier(public_key_pem)
    try:
        envelope.verify([key], threshold=1)
    except VerificationError as error:
        raise InputError(_no_signature(envelope, key)) from error
    return _statement(envelope)


def _no_signature(envelope: Envelope, key: SSlibKey) -> str:
    if not envelope.signatures:
        return "nobody has signed it"
    if key.keyid in envelope.signatures:
        return f"content or signature was changed after key {key.keyid} had signed"
    signers = ", ".join(envelope.signatures)
    return f"the signature is not one of key {key.keyid} (signed by: {signers})"


def _envelope(content: bytes) -> Envelope:
    try:
        values = json.loads(content)
        envelope = Envelope.from_dict(copy.deepcopy(values))
        exact = json_bytes(envelope.to_dict()) == content
    except Exception as error:  # what hostile JSON makes json and securesystemslib raise
        raise InputError(
            f"not a DSSE envelope: {type(error).__name__}: {one_line(error)}"
        ) from error
    if not exact:
        raise InputError("not a DSSE envelope as Backburn writes one: it was changed")
    return envelope


def _statement(envelope: Envelope) -> dict[str, Any]:
    if envelope.payload_type != PAYLOAD_TYPE:
        raise InputError(f"payload type {envelope.payload_type!r} is not {PAYLOAD_TYPE}")
    try:
        statement = json.loads(envelope.payload)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the signed payload is not JSON: {one_line(error)}") from error
    if not isinstance(statement, dict) or statement.get("_type") != STATEMENT_TYPE:
        raise InputError(f"the signed payload is no {STATEMENT_TYPE}")
    return statement


def require_key() -> None:
    """Fail early when nothing could be signed.

    Raises:
        ContainmentError: if no usable key is in the environment.
    """
    _private(_from_environment())


def _from_environment() -> str:
    text = os.environ.get(KEY_VARIABLE)
    if not text:
        raise ContainmentError(
            f"{KEY_VARIABLE} is not set: evidence could not be signed. Put a key into the run's "
            "Secret (make one with `backburn signing-key`)"
        )
    return text


def _private(text: str) -> Ed25519PrivateKey:
    try:
        raw = base64.b64decode(text.strip(), altchars=b"-_", validate=True)
        return Ed25519PrivateKey.from_private_bytes(raw)
    except ValueError as error:
        raise ContainmentError(
            f"{KEY_VARIABLE} is not a key (URL-safe base64 of 32 bytes); make one with `backburn "
            "signing-key`"
        ) from error


def _pem(key: Ed25519PublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _verifier(public_key_pem: str) -> SSlibKey:
    try:
        key = load_pem_public_key(public_key_pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"not a public key in PEM: {one_line(error)}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError("not an Ed25519 public key")
    return SSlibKey.from_crypto(key)
