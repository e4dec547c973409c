"""What is tried before a server starts, so that it does not fail later: folders and certificates."""

from __future__ import annotations

import ssl
import tempfile
from pathlib import Path

from ikq.errors import RefusedError
from ikq.serve.settings import Settings

__all__ = ["check_start"]


def check_start(settings: Settings) -> None:
    """Tries the folders and files that settings name.

    Raises:
        RefusedError: a folder cannot be written, or the certificate and its key cannot be used.
        OSError: the certificate or its key cannot be read.
    """
    for option, folder in (("--prefix-cache", settings.prefix_dir), ("--slot-save-path", settings.slot_dir)):
        if folder is not None:
            _check_folder(option, folder)
    if settings.ssl_certfile is not None and settings.ssl_keyfile is not None:
        _check_certificate(settings.ssl_certfile, settings.ssl_keyfile)


def _check_folder(option: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RefusedError(f"{option} {folder}: files cannot be written there: {reason}") from None


def _check_certificate(certificate: Path, key: Path) -> None:
    for file in (certificate, key):
        file.read_bytes()
    try:
        # a key that needs a password is not waited for
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        sentence = reason.replace("_", " ").lower()
        raise RefusedError(f"{certificate} and {key} are no certificate and its key: {sentence}") from None
