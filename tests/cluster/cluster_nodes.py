"""A cluster of nodes on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

# neither tests nor nodes tell anyone that they were here
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# workers are not put behind all other programs of a machine that is busy
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 # Ray names it so
# the loopback stays the loopback
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, `a` and `b`, of one CPU each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
    head = NODE | {"node_name": "a", "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    add_node(cluster, "b")
    yield cluster
    cluster.shutdown()


def add_node(cluster: Any, name: str) -> Any:
    """One more node."""
    return cluster.add_node(**NODE, node_name=name)
