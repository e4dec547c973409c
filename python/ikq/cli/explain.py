"""`ikq explain`: how a model would be run, and why."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import ikq
from ikq.cli.model_options import (
    add_ignored,
    add_loading,
    fitted,
    load_options,
    print_ignored,
    print_unused_rules,
)
from ikq.cli.placement_table import placement_lines
from ikq.cli.speculation_options import add_drafters, check_files
from ikq.inference.model import Explanation, FfnPlan, Placed

NAME = "explain"
HELP = "show how a model is run: FFN plan of every layer, where weights live, which programs load the file"
EXAMPLES = (
    "ikq explain model.gguf",
    "ikq explain -muge model.gguf",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.description = (
        "Loads a model and shows, per layer, how its feed-forward network is computed and why; what is "
        "computed where; whether weights are mapped or copied; what the cache takes; and which programs know "
        "all types of the file."
    )
    parser.add_argument("model", metavar="MODEL.gguf")
    parser.add_argument("--json", action="store_true", help="a JSON object for programs")
    add_loading(parser)
    add_drafters(parser)
    add_ignored(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the explanation."""
    options = load_options(args)
    print_ignored(args)
    with ikq.GGUFReader(args.model) as reader:
        check_files(args, reader)
        print_unused_rules(args, reader.tensors)
    with ikq.Model.load(args.model, **fitted(args.model, options)) as model:
        n_ctx = model.n_ctx
        cache = model.sequence_bytes(n_ctx)
        head = model.mtp if args.mtp else None
        head_cache = None if head is None else head.sequence_bytes(n_ctx)
        drafting = [] if args.draft_model is None else [model.draft_model(args.draft_model)]
        draft_caches = [draft.sequence_bytes(draft.n_ctx) for draft in drafting]
        found = model.explain()
    if args.json:
        print(json.dumps(_plain(found) | {"n_ctx": n_ctx, "sequence_bytes": cache}, indent=1))
        return 0
    print(f"architecture {found.architecture}")
    for (role, plan, why, *types), group in groupby(found.ffn, key=_without_layer):
        layers = [p.layer for p in group]
        name = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}-{layers[-1]}"
        print(f"{name}, {role}: {plan} ({why}); gate {types[0]}, up {types[1]}, down {types[2]}")
    for line in placement_lines(found.placement):
        print(line)
    memory = found.memory
    print(f"weights: {memory.mapped + memory.copied} bytes, {found.why_memory}")
    print(f"cache: {cache} bytes for {n_ctx} positions")
    if head_cache is not None:
        print("head for further tokens:")
        _print_drafting(found.mtp, head_cache, n_ctx)
    for draft, draft_cache in zip(found.draft_models, draft_caches, strict=True):
        print(f"draft model, architecture {draft.architecture}:")
        _print_drafting(draft.placement, draft_cache, n_ctx)
    print(f"loads in: {', '.join(found.loaded_by)}")
    for note in found.notes:
        print(f"note: {note}")
    return 0


def _print_drafting(placement: Sequence[Placed], cache: int, n_ctx: int) -> None:
    print("\n".join(placement_lines(placement)))
    print(f"cache: {cache} bytes for {n_ctx} positions")


def _without_layer(p: FfnPlan) -> tuple[str, ...]:
    return (p.role, p.plan, p.why, p.gate.name, p.up.name, p.down.name)


def _plain(found: Explanation) -> dict[str, Any]:
    plans = [p._asdict() | {k: getattr(p, k).name for k in ("gate", "up", "down")} for p in found.ffn]
    placement = [p._asdict() for p in found.placement]
    return found._asdict() | {
        "ffn": plans,
        "placement": placement,
        "memory": found.memory._asdict(),
        "mtp": [p._asdict() for p in found.mtp],
        "draft_models": [_plain(draft) for draft in found.draft_models],
    }
