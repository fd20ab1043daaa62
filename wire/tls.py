"""TLS of one connection (docs/protocol.md).

    tls = Tls(context)                               # of wire/certificates.py; Tls(context, host) for who connects
    tls.handshake(send, receive)
    sock.sendmsg(tls.encrypted(views))
    count = tls.receive_into(view, receive)

It works in memory, and `Connection` moves the bytes: an `SSLSocket` must not be used by a thread that sends and by one
that receives at the same time, and would need time limits of its own.
"""
from __future__ import annotations

import ssl
import threading
from typing import Callable, List, Optional

from wire.frames import MAGIC, ProtocolError

RECORDS_BYTES = 1 << 17  # received at a time; a record has 16 KiB at most
NEED_CERTIFICATE = ('TLSV13_ALERT_CERTIFICATE_REQUIRED', 'SSLV3_ALERT_HANDSHAKE_FAILURE')
SHOWS_NONE = 'PEER_DID_NOT_RETURN_A_CERTIFICATE'
NOT_SIGNED, NOT_NOW, NOT_NAMED = (18, 19, 20, 21), (9, 10), (62, 64)  # OpenSSL's X509_V_ERR_...


class PlainPeer(ProtocolError):
    """The peer speaks the protocol without TLS."""


class Tls:
    """One connection's TLS. One thread may encrypt while another one decrypts."""

    def __init__(self, context: ssl.SSLContext, host: Optional[str] = None) -> None:
        """`host`: that is connected to, as its certificate must name it; None at the end that listens."""
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._arrived, self._leaving, server_side=host is None, server_hostname=host)
        self._listens = host is None
        self._lock = threading.Lock()
        self._records = memoryview(bytearray(RECORDS_BYTES))

    def handshake(self, send: Callable[[memoryview], None], receive: Callable[[memoryview], int]) -> None:
        """Agree on keys and check certificates. Raises `ProtocolError`, and what `send` and `receive` raise."""
        greeted = done = False
        while not done:
            failed: Optional[ssl.SSLError] = None
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                failed = error
            if self._leaving.pending:  # behind a failure: what TLS tells the peer of it
                send(memoryview(self._leaving.read()))
            if failed is not None:
                raise ProtocolError(self._reason(failed)) from None
            if not done:
                count = receive(self._records)
                if not greeted and bytes(self._records[:len(MAGIC)]) == MAGIC:
                    raise PlainPeer('this end speaks TLS, the other one does not: start it with ' + (
                        '--tls_ca' if self._listens else '--tls_cert and --tls_key'))
                greeted = True
                self._arrived.write(self._records[:count])

    def encrypted(self, views: List[memoryview]) -> List[memoryview]:
        """These bytes as they leave, to be sent in the order of the calls. Raises `ProtocolError`."""
        with self._lock:
            try:
                for view in views:
                    while view:
                        view = view[self._tls.write(view):]  # a record at a time
            except ssl.SSLError as error:
                raise ProtocolError(self._reason(error)) from None
            return [memoryview(self._leaving.read())]

    def receive_into(self, view: memoryview, receive: Callable[[memoryview], int]) -> int:
        """Decrypt some bytes into `view`, at least one; 0 when the peer has ended TLS. Raises `ProtocolError`, and what
        `receive`, which gets encrypted ones, raises."""
        while True:
            with self._lock:
                try:
                    return self._tls.read(len(view), view)
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLZeroReturnError:
                    return 0
                except ssl.SSLError as error:
                    raise ProtocolError(self._reason(error)) from None
            count = receive(self._records)
            with self._lock:
                self._arrived.write(self._records[:count])

    def _reason(self, error: ssl.SSLError) -> str:
        """What a user can do about it, in one line."""
        if isinstance(error, ssl.SSLCertVerificationError):
            flag = next((text for codes, text in (
                (NOT_SIGNED, 'it is not signed by what --tls_ca holds'),
                (NOT_NOW, 'and the clock of this machine matters'),
                (NOT_NAMED, '--server_ip must be one of the names and addresses in it')
            ) if error.verify_code in codes), '')
            return f'TLS: the certificate of the other end is not accepted: {error.verify_message}' + (
                f' ({flag})' if flag else '')
        reason = error.reason or str(error)
        if not self._listens and reason in NEED_CERTIFICATE:
            return 'TLS: the other end asks for a certificate of this one: give --tls_cert and --tls_key'
        if reason == SHOWS_NONE:
            return 'TLS: the other end shows no certificate; it needs --tls_cert and --tls_key'
        words = reason.lower().replace('_', ' ')
        if '_ALERT_' in reason:
            return f'TLS: the other end does not accept this one: {words.partition(" alert ")[2]}'
        return f'TLS: {words}'
