"""Check certificate and key files before use: the driver's errors do not name the file."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from agentic.errors import BackendRejectedError
from agentic.text import printable


def check_certificates(options: Mapping[str, str]) -> None:
    """Check that the files of a TLS connection can be read and contain what they should.

    Args:
        options: The driver's options: `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`; in a URL `ca`, `cert` and `key`.

    Raises:
        BackendRejectedError: A file is unusable; the message names the option and the file.
    """
    authorities, certificate, key = (options.get(f"ssl_{name}") for name in ("ca_certs", "certfile", "keyfile"))
    if key and not certificate:
        raise BackendRejectedError("key: no certificate for this key: give cert as well")
    for option, path in (("ca", authorities), ("cert", certificate), ("key", key)):
        if path:
            _check_readable(option, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for option, path in (("ca", authorities), ("cert", certificate)):
        if path:
            try:
                context.load_verify_locations(cafile=path)
            except ssl.SSLError:
                _refuse(option, path, "contains no certificate")
    if certificate:
        try:
            # Without a password argument, OpenSSL would prompt for one on the terminal.
            context.load_cert_chain(certificate, key, password="")
        except ssl.SSLError:
            _refuse("key" if key else "cert", key or certificate, "contains no unencrypted key for that certificate")


def _check_readable(option: str, path: str) -> None:
    try:
        Path(path).read_bytes()
    except (OSError, ValueError) as error:
        _refuse(option, path, f"cannot be read: {getattr(error, 'strerror', None) or error}")


def _refuse(option: str, path: str, why: str) -> NoReturn:
    raise BackendRejectedError(f"{option}: the file {printable(path)!r} {why}") from None
