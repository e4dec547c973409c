"""A cluster of nodes on this machine, and work for it."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from partial_outputs import noted

import ikq
from ikq.evaluate import base_writer, cut, measure_perplexity, text_tokens

# neither tests nor nodes tell anyone that they were here
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# workers are not put behind all other programs of a machine that is busy
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 # Ray names it so
# nodes may be slow to start on a busy machine
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # Ray names it so
# the loopback stays the loopback
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

# commands as processes of their own take minutes: every one starts workers anew on every node
only_in_full = pytest.mark.skipif(
    os.environ.get("IKQ_CLUSTER_TESTS") != "all", reason="a part of `make test-cluster`"
)
# Ray's own warnings, and sockets of nodes that were killed
ignores_warnings = pytest.mark.filterwarnings("ignore")

DATA = Path(__file__).parents[1] / "data"
TINY = DATA / "tiny-moe-bf16.gguf"
NODE = {
    "num_cpus": 1,
    "object_store_memory": 80 << 20,
    "node_ip_address": "127.0.0.1",
    "include_log_monitor": False,
}

SLOW_TYPE = "IQ4_KT"
"""A type that is searched for, which `slow` is made of."""
SLOW_UNITS = 18
"""Its units that are not only copied."""

TEXT = "".join(f"def number_{i}(x):\n    return x * {i * i} + {i}\n\n" for i in range(300))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, `a` and `b`, of one CPU each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
    head = NODE | {"node_name": "a", "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    add_node(cluster, "b")
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def attached(cluster: Any) -> Iterator[Any]:
    """The cluster with this process as the driver of all runs, whose workers need not start anew for each."""
    ray = pytest.importorskip("ray")
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()


def add_node(cluster: Any, name: str) -> Any:
    """One more node."""
    return cluster.add_node(**NODE, node_name=name)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model that takes some seconds, and the hash of what one machine makes of it."""
    folder = tmp_path_factory.mktemp("slow")
    source = folder / "m.gguf"
    rng = np.random.default_rng(0)
    with ikq.GGUFWriter(source, {"general.architecture": "llama"}) as writer:
        for name in ("ffn_up_exps", "ffn_gate_exps", "ffn_down_exps"):
            weights = rng.standard_normal((SLOW_UNITS // 3, 256, 1024), dtype=np.float32)
            writer.add_tensor(f"blk.0.{name}.weight", weights)
        writer.add_tensor("blk.0.attn_norm.weight", np.ones(1024, np.float32))
    ikq.quantize_file(source, folder / "alone.gguf", SLOW_TYPE, pure=True)
    return source, sha256(folder / "alone.gguf")


def sha256(path: Path) -> str:
    """The hash of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def n_noted(out: Path) -> int:
    """Units that the journal beside an output has."""
    journal = out.with_name(f"{out.name}.journal")
    # an open journal that has its header
    return sum(noted(journal)) if journal.exists() and journal.stat().st_size > 96 else 0


def quantize_words(source: Path, out: Path, type_name: str, *more: object) -> list[str]:
    """`ikq quantize`, with one thread."""
    return ["quantize", *map(str, more), str(source), str(out), type_name, "1"]


def imatrix_words(out: Path, *more: object) -> list[str]:
    """`ikq imatrix` of `TEXT`, which is written beside the output, with one thread."""
    text = out.with_name("text.txt")
    text.write_text(TEXT)
    given = ("-m", TINY, "-f", text, "-o", out, "-c", 64, "--chunks", 12, "-lsim", "-t", 1)
    return ["imatrix", *map(str, (*given, *more))]


def quality_words(folder: Path, base: str, n: int = 5) -> list[str]:
    """A command that measures quality in windows of `TEXT`, with one thread.

    Args:
        folder: For the files that it needs.
        base: `text` for a perplexity; `file` or `model`: a divergence from such a base.
        n: Windows.
    """
    text, model, file = folder / "text.txt", folder / "m.gguf", folder / "b.kld"
    text.write_text(TEXT)
    read = ["-f", str(text), "-c", "64", "--chunks", str(n), "-t", "1"]
    if base == "text":
        return ["perplexity", "-m", str(TINY), *read]
    ikq.quantize_file(TINY, model, "Q4_K")
    if base == "model":
        return ["kld", "-m", str(model), "--base-model", str(TINY), *read]
    with ikq.Model.load(TINY, n_ctx=64) as original:
        windows = cut(text_tokens(original.tokenizer, TEXT), n_ctx=64, chunks=n)
        with base_writer(file, windows, original.spec.n_vocab) as sink:
            for _ in measure_perplexity(original, windows, sink):
                pass
    return ["kld", "-m", str(model), "--kl-divergence-base", str(file), "-t", "1"]
