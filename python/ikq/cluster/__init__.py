"""Work that several machines share, over Ray (`pip install "ikq[cluster]"`).

The driver, which is the command that was called, makes the plan, hands out small batches of units and writes
what comes back, with the journal that it has on one machine. Nodes open the source by its path and make the
plan anew.

- `connect`: Ray, and which addresses are taken; `output`: where Ray's own words go; `paths`: where files
  lie on each node.
- `job`, `worker`: what a node is told, and what it does; `dispatch`: who gets which units; `rates`: how fast
  nodes are; `quantizing`: all of it together.
- `files`, `chunks`: chunks of a text, which a model on every node runs; `collecting`, `sums`: importance
  matrices; `evaluating`: perplexity and KL divergence; `growing`: values of all chunks so far; `probing`:
  sensitivities for recipes.
"""

from ikq.cluster.evaluating import divergence_on_cluster, perplexity_on_cluster
from ikq.cluster.paths import PathRule, parse_path_rule
from ikq.cluster.probing import probe_on_cluster
from ikq.cluster.quantizing import quantize_on_cluster

__all__ = [
    "PathRule",
    "divergence_on_cluster",
    "parse_path_rule",
    "perplexity_on_cluster",
    "probe_on_cluster",
    "quantize_on_cluster",
]
