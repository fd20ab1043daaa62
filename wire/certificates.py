"""What the flags of TLS name: certificates and keys from files, checked before anything listens or connects."""
from __future__ import annotations

import ssl
from typing import Optional

import cli
from config import UserError


def listening_context(files: cli.TlsFiles) -> Optional[ssl.SSLContext]:
    """For an end that listens; None without files. With `ca`, who connects needs a certificate signed by it. Raises
    `UserError`."""
    if not any(files):
        return None
    if files.cert is None:
        raise UserError('TLS needs --tls_cert and --tls_key where clients connect to')
    context = _context(ssl.PROTOCOL_TLS_SERVER, files)
    if files.ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def connecting_context(files: cli.TlsFiles) -> Optional[ssl.SSLContext]:
    """For an end that connects; None without files. Raises `UserError`."""
    if not any(files):
        return None
    if files.ca is None:
        raise UserError('TLS needs --tls_ca, the certificate that signed that of the server')
    return _context(ssl.PROTOCOL_TLS_CLIENT, files)  # checks the host's name, too


def _context(protocol: int, files: cli.TlsFiles) -> ssl.SSLContext:
    if (files.cert is None) != (files.key is None):
        raise UserError('--tls_cert and --tls_key belong together: give both')
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= getattr(ssl, 'OP_NO_RENEGOTIATION', 0)
    if files.cert is not None:
        _check_file('--tls_cert', files.cert, '-----BEGIN CERTIFICATE-----')
        _check_file('--tls_key', files.key, 'PRIVATE KEY-----')

        def passphrase() -> str:
            raise UserError(f'--tls_key {files.key}: is protected by a passphrase; `openssl pkey -in {files.key} -out '
                            'FILE` writes it without one')
        try:
            context.load_cert_chain(files.cert, files.key, passphrase)
        except ssl.SSLError as error:
            raise UserError(f'--tls_key {files.key}: is not the key of --tls_cert {files.cert}'
                            if error.reason == 'KEY_VALUES_MISMATCH' else
                            f'--tls_cert {files.cert}, --tls_key {files.key}: {error.reason or error}') from None
    if files.ca is not None:
        _check_file('--tls_ca', files.ca, '-----BEGIN CERTIFICATE-----')
        try:
            context.load_verify_locations(files.ca)
        except ssl.SSLError as error:
            raise UserError(f'--tls_ca {files.ca}: {error.reason or error}') from None
    return context


def _check_file(flag: str, path: str, wanted: str) -> None:
    try:
        with open(path, encoding='latin-1') as stream:
            text = stream.read()
    except OSError as error:
        raise UserError(f'{flag} {path}: {error.strerror}') from None
    if wanted not in text:
        raise UserError(f"{flag} {path}: holds no {'key' if flag == '--tls_key' else 'certificate'} in PEM format")
