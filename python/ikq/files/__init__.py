"""Files: GGUF read and written, and worked on as files: splitting, hashing, comparing, checking.

gguf.py         `GGUFReader`, `GGUFWriter`, `Metadata`
blocks.py       decoded values of a tensor, a piece at a time
splitting.py    how a split set is divided, before anything is written
hashing.py      hashes of tensor data, and manifests of them
comparing.py    what is different between two files
checking.py     what is wrong with a file
text_files.py   text files in the encodings that people use
whole_file.py   files that appear only when they are complete
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ikq.files.checking import NotFinite, Report, check_file
    from ikq.files.comparing import Comparison, TensorDifference, compare_files
    from ikq.files.hashing import Hash, check_manifest, hash_file
    from ikq.files.splitting import PlannedShard, plan_split

__all__ = [
    "Comparison",
    "Hash",
    "NotFinite",
    "PlannedShard",
    "Report",
    "TensorDifference",
    "check_file",
    "check_manifest",
    "compare_files",
    "hash_file",
    "plan_split",
]

_MODULES = {
    "checking": {"NotFinite", "Report", "check_file"},
    "comparing": {"Comparison", "TensorDifference", "compare_files"},
    "hashing": {"Hash", "check_manifest", "hash_file"},
    "splitting": {"PlannedShard", "plan_split"},
}


def __getattr__(name: str) -> object:
    """Imports names when they are used: models read files, and checking files needs models."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
