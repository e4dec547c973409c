"""What is tried before a server starts, so that it does not fail later: folders and certificates."""

from __future__ import annotations

import os
import re
import ssl
import tempfile
from pathlib import Path

from ikq.errors import RefusedError
from ikq.serve.settings import Settings

__all__ = ["check_start"]

# what a process that is killed leaves of a file that it writes; the number is the process'
_HALF = re.compile(r".+\.([0-9]{1,9})\.partial")


def check_start(settings: Settings) -> None:
    """Tries the folders and files that settings name, and removes what killed servers have left half written.

    Texts that are kept (`--prefix-cache`) are looked through when their model is loaded.

    Raises:
        RefusedError: a folder cannot be written, or the certificate and its key cannot be used.
        OSError: the certificate or its key cannot be read.
    """
    for option, folder in (("--prefix-cache", settings.prefix_dir), ("--slot-save-path", settings.slot_dir)):
        if folder is not None:
            _check_folder(option, folder)
    if settings.slot_dir is not None:
        _clear(settings.slot_dir)
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


def _clear(folder: Path) -> None:
    """Removes files of slots that were being written when their server was killed."""
    for file in folder.glob("*.partial"):
        found = _HALF.fullmatch(file.name)
        if found is not None and not _is_running(int(found[1])):
            file.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    """Whether another process has this number. This one has written nothing yet."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


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
