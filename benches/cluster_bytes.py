"""`ikq quantize --cluster` while nodes and the driver are killed: the bytes of one machine?

    python benches/cluster_bytes.py FOLDER [--gigabytes 1] [--type IQ4_KS]

The sources are a checkpoint folder of random weights and the GGUF file that `ikq convert` makes of it; both are written into
FOLDER, and removed at the end. Nodes are those of Ray clusters of this machine, with one CPU each. One of them is killed when
a third of the units is done, the driver when two thirds are; then the same command goes on. Prints a Markdown table, and
exits with 1 where a hash is not that of the run on one machine. Needs `ikq[cluster]`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import convert_speed

# nothing is told to Ray's makers; the loopback stays the loopback
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
# workers are not put behind the driver, and nodes may be slow to start on a busy machine
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 # Ray names it so
os.environ["RAY_raylet_start_wait_time_s"] = "300"  # noqa: SIM112
NODE = {"num_cpus": 1, "object_store_memory": 200 << 20, "node_ip_address": "127.0.0.1"}
IKQ = [sys.executable, "-m", "ikq"]
# bytes of the journal's header, and of a unit's place behind it
SLOT = 96


class Run(NamedTuple):
    """What a command, or two of them, came to.

    Attributes:
        seconds: Of all commands together.
        killed: Units that were done when the node and the driver were killed, and all units.
        digest: SHA-256 of the output.
    """

    seconds: float
    killed: str
    digest: str


def sha256(path: Path) -> str:
    """The hash of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()


def noted(out: Path) -> tuple[int, int]:
    """Units that the journal beside an output has, and all of them; zeros where there is none yet."""
    journal = out.with_name(f"{out.name}.journal")
    raw = journal.read_bytes() if journal.exists() else b""
    if len(raw) <= SLOT:
        return 0, 0
    slots = (raw[i : i + SLOT] for i in range(SLOT, len(raw), SLOT))
    return sum(any(slot) for slot in slots), struct.unpack_from("<Q", raw, 24)[0]


def until(share: float, out: Path, process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Waits for a share of the units; how many are done then, and of how many."""
    while True:
        done, n = noted(out)
        if n and done >= share * n:
            return done, n
        if process.poll() is not None:
            raise SystemExit(f"the run ended with {process.returncode} before it was to be disturbed")
        time.sleep(0.1)


def alone(source: Path, out: Path, type_name: str) -> Run:
    """One machine, two threads."""
    start = time.perf_counter()
    subprocess.run(
        [*IKQ, "quantize", str(source), str(out), type_name, "2"], check=True, stdout=subprocess.DEVNULL
    )
    return Run(time.perf_counter() - start, "", sha256(out))


@contextmanager
def cluster_of(n_nodes: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of a cluster, and what kills its last node."""
    from ray.cluster_utils import Cluster

    head = NODE | {"node_name": "n1", "include_dashboard": False}
    cluster: Any = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [cluster.add_node(**NODE, node_name=f"n{i + 1}") for i in range(1, n_nodes)]
        yield cluster.address, lambda: cluster.remove_node(nodes[-1], allow_graceful=False)
    finally:
        cluster.shutdown()


def disturbed(n_nodes: int, source: Path, out: Path, type_name: str, more: list[str]) -> Run:
    """A run whose node and then driver are killed, and the same command once more."""
    with cluster_of(n_nodes) as (address, kill_node):
        command = [*IKQ, "quantize", "--cluster", address, *more, str(source), str(out), type_name, "1"]
        start = time.perf_counter()
        # what Ray says about the node
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        at_node, n = until(1 / 3, out, process)
        kill_node()
        at_driver, _ = until(2 / 3, out, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists():
            raise SystemExit("the output had its name before it was whole")
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - start
        if "going on: " not in done.stdout:
            raise SystemExit(f"the second command began anew:\n{done.stdout}")
    return Run(seconds, f"{at_node}, {at_driver} of {n}", sha256(out))


def main() -> int:
    """Makes the runs; 1 where bytes differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for sources and outputs; made and removed")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of the result (1)")
    parser.add_argument("--type", default="IQ4_KS")
    parser.add_argument("--bits", type=float, default=4.25, help="of a weight in that type (4.25)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    try:
        folder = convert_speed.checkpoint(args.folder / "checkpoint", args.gigabytes * 1e9 * 16 / args.bits)
        file, out = args.folder / "source.gguf", args.folder / "out.gguf"
        subprocess.run([*IKQ, "convert", str(folder), str(file)], check=True, stdout=subprocess.DEVNULL)
        digests: dict[str, str] = {}
        wrong, size, table = 0, 0, []

        def row(kind: str, name: str, found: Run) -> None:
            nonlocal wrong, size
            size = out.stat().st_size
            out.unlink()
            expected = digests.setdefault(kind, found.digest)
            equal = "" if not found.killed else "yes" if found.digest == expected else "**no**"
            wrong += equal == "**no**"
            cells = (f"{kind}, {name}", f"{found.seconds:.0f}", found.killed, found.digest[:16], equal)
            table.append(f"| {' | '.join(cells)} |")
            print(table[-1], file=sys.stderr, flush=True)

        for kind, source, clusters in (
            ("checkpoint", folder, [(2, []), (3, [])]),
            ("GGUF", file, [(3, ["--shared-output"])]),
        ):
            row(kind, "one machine", alone(source, out, args.type))
            for n_nodes, more in clusters:
                name = " ".join([f"{n_nodes} nodes, one killed, then the driver", *more])
                row(kind, name, disturbed(n_nodes, source, out, args.type, more))
    finally:
        shutil.rmtree(args.folder)
    print(f"{size / 1e9:.2f} GB of {args.type}\n")
    print("| source and run | seconds | units done at the kills | SHA-256 begins | equal |")
    print("| --- | --: | --: | --- | --- |")
    print("\n".join(table))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
