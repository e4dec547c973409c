"""Files that appear only when they are complete: `whole_file`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["whole_file"]


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file that gets its name when the block ends without an exception; otherwise it is removed.

    A device or a pipe of that name (`/dev/null`, `/dev/stdout`) stays one, and is written to at the end.
    """
    target = Path(path)
    if target.exists() and not target.is_file() and not target.is_dir():
        with tempfile.TemporaryFile() as whole:
            yield whole
            whole.seek(0)
            with target.open("wb") as out:
                shutil.copyfileobj(whole, out)
        return
    with tempfile.NamedTemporaryFile(
        dir=target.parent, prefix=f".{target.name[:180]}.", suffix=".tmp", delete=False
    ) as f:
        try:
            yield f
            f.flush()
            os.fsync(f.fileno())
            umask = os.umask(0)
            os.umask(umask)
            Path(f.name).chmod(0o666 & ~umask)
            Path(f.name).replace(target)
        except BaseException:
            Path(f.name).unlink(missing_ok=True)
            raise
