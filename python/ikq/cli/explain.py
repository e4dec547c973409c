"""`ikq explain`: how a model would be run, and why."""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from typing import Any

import ikq
from ikq.model import Explanation, FfnPlan

NAME = "explain"
HELP = "show how a model is run: FFN plan of every layer, where weights live, which programs load the file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.description = (
        "Loads a model and shows, per layer, how its feed-forward network is computed and why; whether "
        "weights are mapped or copied; what the cache takes; and which programs know all types of the file."
    )
    parser.add_argument("model", metavar="MODEL.gguf")
    parser.add_argument("-c", "--ctx-size", type=int, metavar="N", help="positions of the cache")
    parser.add_argument("--no-fused-up-gate", "-no-fug", action="store_true", help="up and gate apart")
    parser.add_argument("--no-fused-moe", "-no-fmoe", action="store_true", help="the same, experts only")
    parser.add_argument("--merge-up-gate-experts", "-muge", action="store_true", help="merge them as a view")
    parser.add_argument("--mmap", choices=("auto", "on", "off"), default="auto", help="map or copy weights")
    parser.add_argument("--json", action="store_true", help="a JSON object for programs")


def run(args: argparse.Namespace) -> int:
    """Prints the explanation."""
    options: dict[str, Any] = {
        "n_ctx": args.ctx_size,
        "fused_up_gate": not args.no_fused_up_gate,
        "fused_moe": not args.no_fused_moe,
        "merge_up_gate_experts": args.merge_up_gate_experts,
        "mmap": args.mmap,
    }
    with ikq.Model.load(args.model, **options) as model:
        found = model.explain()
        n_ctx = model.n_ctx
    if args.json:
        print(json.dumps(_plain(found) | {"n_ctx": n_ctx}, indent=1))
        return 0
    print(f"architecture {found.architecture}")
    for (role, plan, why, *types), group in groupby(found.ffn, key=_without_layer):
        layers = [p.layer for p in group]
        name = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}-{layers[-1]}"
        print(f"{name}, {role}: {plan} ({why}); gate {types[0]}, up {types[1]}, down {types[2]}")
    memory = found.memory
    print(f"weights: {memory.mapped + memory.copied} bytes, {found.why_memory}")
    print(f"cache: {memory.cache} bytes for {n_ctx} positions")
    print(f"loads in: {', '.join(found.loaded_by)}")
    for note in found.notes:
        print(f"note: {note}")
    return 0


def _without_layer(p: FfnPlan) -> tuple[str, ...]:
    return (p.role, p.plan, p.why, p.gate.name, p.up.name, p.down.name)


def _plain(found: Explanation) -> dict[str, Any]:
    plans = [p._asdict() | {k: getattr(p, k).name for k in ("gate", "up", "down")} for p in found.ffn]
    return found._asdict() | {"ffn": plans, "memory": found.memory._asdict()}
