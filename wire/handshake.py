"""How the two ends of a connection prove that they share a secret, and the keys that follow from it (docs/protocol.md).

The token never travels: each end shows an HMAC of both ends' fresh nonces.
"""
from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import NamedTuple, Tuple

from wire.frames import VERSION

NONCE_BYTES = 32
NONCE = re.compile(r'[0-9a-f]{64}\Z')


class Nonces(NamedTuple):
    """Fresh random numbers, hex digits: of who connects, and of who listens."""
    connecting: str
    listening: str


class SessionKeys(NamedTuple):
    """Keys of one connection at one end of it; empty: frames carry no MAC."""
    sending: bytes = b''
    receiving: bytes = b''


def new_nonce() -> str:
    """64 hex digits that nobody can guess."""
    return secrets.token_hex(NONCE_BYTES)


def proof(token: bytes, prover: str, verifier: str, nonces: Nonces) -> str:
    """HMAC-SHA256 of who proves to whom, and both nonces: hex digits. It holds for one direction of one connection
    between these two roles, so for one port; shown to anybody else it proves nothing."""
    said = f'{VERSION}|{prover}|{verifier}|{nonces.connecting}|{nonces.listening}'
    return hmac.new(token, said.encode(), hashlib.sha256).hexdigest()


def session_keys(token: bytes, roles: Tuple[str, str], nonces: Nonces) -> SessionKeys:
    """Both directions' keys for the end of the first of these roles: HKDF-SHA256 (RFC 5869) of the token. The nonces
    give every connection keys of its own, the roles each of its directions."""
    secret = hmac.new('|'.join(nonces).encode(), token, hashlib.sha256).digest()

    def key(sender: str, receiver: str) -> bytes:
        return hmac.new(secret, f'{VERSION}|{sender}|{receiver}\x01'.encode(), hashlib.sha256).digest()

    return SessionKeys(key(*roles), key(*reversed(roles)))
