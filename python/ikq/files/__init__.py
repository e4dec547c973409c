"""Working on GGUF files as files: splitting, hashing, comparing, checking.

blocks.py      decoded values of a tensor, a piece at a time
splitting.py   how a split set is divided, before anything is written
hashing.py     hashes of tensor data, and manifests of them
comparing.py   what is different between two files
checking.py    what is wrong with a file
"""

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
