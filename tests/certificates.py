"""Certificates for tests, made with the `openssl` command."""
from __future__ import annotations

import os
import shutil
import subprocess

import pytest

import cli

OPENSSL = shutil.which('openssl')
EXPIRED = ('-not_before', '20200101000000Z', '-not_after', '20200102000000Z')
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason='needs the openssl command (apt install openssl)')


def openssl(*arguments: str) -> None:
    subprocess.run([OPENSSL, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


class Authority:
    """Signs certificates."""

    def __init__(self, folder, name: str = 'ca') -> None:
        self.folder = str(folder)
        self.cert, self.key = self.path(f'{name}.pem'), self.path(f'{name}.key')
        openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout',
                self.key, '-out', self.cert, '-days', '30', '-subj', f'/CN={name}')

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def signed(self, name: str, names: str = 'IP:127.0.0.1,DNS:localhost', days: int = 30) -> cli.TlsFiles:
        """A certificate for these names with its key, and this authority."""
        cert, key, request, extra = (self.path(f'{name}.{end}') for end in ('pem', 'key', 'csr', 'txt'))
        with open(extra, 'w', encoding='ascii') as stream:
            stream.write(f'subjectAltName={names}\n')
        openssl('req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout', key, '-out',
                request, '-subj', f'/CN={name}')
        openssl('x509', '-req', '-in', request, '-CA', self.cert, '-CAkey', self.key, '-CAcreateserial', '-out', cert,
                '-days', str(days), '-extfile', extra)
        return cli.TlsFiles(cert, key, self.cert)
