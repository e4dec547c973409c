"""Fetches what tests read of other packages' source distributions, by the packages' names.

    python tools/fetch_sdists.py .venv/sdists

Nothing of it is part of this repository. What cannot be fetched is told; tests that need it are skipped.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

# package, version, folder in its source distribution
WANTED = (
    ("llama-cpp-python", "0.3.36", "vendor/llama.cpp/models/templates"),
    ("jsonschema", "4.26.0", "json/tests"),
)

# pip looks at a package's metadata, too, which takes the tools that build it: as wheels, in seconds
MOST_SECONDS = 240


def fetch(package, version, folder, target):
    """Unpacks a folder of a source distribution."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", package]
        command += ["--dest", directory, f"{package}=={version}"]
        subprocess.run(command, check=True, timeout=MOST_SECONDS)
        (archive,) = Path(directory).glob("*.tar.gz")
        with tarfile.open(archive) as found:
            for member in found:
                _, _, inner = member.name.partition("/")
                if member.isfile() and inner.startswith(f"{folder}/"):
                    path = target / inner.removeprefix(f"{folder}/")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(found.extractfile(member).read())


def main():
    root = Path(sys.argv[1])
    for package, version, folder in WANTED:
        target = root / f"{package}-{version}"
        if target.is_dir():
            continue
        try:
            fetch(package, version, folder, target)
        except (subprocess.SubprocessError, OSError, ValueError) as e:
            print(f"{package} {version} could not be fetched ({e}): tests that read it are skipped")


if __name__ == "__main__":
    main()
