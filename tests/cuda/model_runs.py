"""Runs a model in a process of its own, where the stand-ins are in front, and gives what it computed.

As a program: path of a model, cases as JSON (name and keywords of `Model.load`), and the file for the results.
"""

import json
import sys
from pathlib import Path

import numpy as np
from standin import environment, run

import ikq

IDS = list(range(3, 27))
LENGTHS = (1, 2, 3, 5, 8, 13, 17, 23)
"""Tokens that eight sequences hold before they all take a step at once."""


def results(
    path: Path, cases: dict[str, dict[str, object]], folder: Path, **more: str
) -> dict[str, np.ndarray]:
    """Per case `whole` logits of `IDS`, those of `pieces`, of `eight` sequences, of `hidden` states, and `devices`.

    `more` are variables of the environment.
    """
    out = folder / "results.npz"
    program = f"import model_runs; model_runs.main({[str(path), json.dumps(cases), str(out)]!r})"
    run(program, environment(**more), timeout=1500)
    with np.load(out) as f:
        return dict(f)


def main(arguments: list[str]) -> None:
    """The program."""
    path, cases, out = arguments[0], json.loads(arguments[1]), arguments[2]
    found: dict[str, np.ndarray] = {}
    for name, options in cases.items():
        with ikq.Model.load(path, n_ctx=64, n_threads=2, **options) as model:
            for key, value in one(model).items():
                found[f"{name} {key}"] = value
    np.savez(out, **found)


def one(model: ikq.Model) -> dict[str, np.ndarray]:
    """What is computed of a model."""
    devices = sorted({p.device for p in model.explain().placement})
    whole = model.logits(IDS)
    if devices == ["CPU"]:
        return {"whole": whole}
    pieces = model.new_sequence()
    first = [model.step([(pieces, part, "all")])[0] for part in (IDS[:10], IDS[10:11], IDS[11:])]
    eight = [model.new_sequence() for _ in LENGTHS]
    for sequence, n in zip(eight, LENGTHS, strict=True):
        model.step([(sequence, IDS[:n], "none")])
    steps = [(s, IDS[n : n + 1], "last") for s, n in zip(eight, LENGTHS, strict=True)]
    together = model.step(steps)
    hidden = model.step([(model.new_sequence(), IDS, "hidden")])[0]
    return {
        "whole": whole,
        "pieces": np.concatenate(first),
        "eight": np.concatenate(together),
        "hidden": hidden,
        "devices": np.array(devices),
    }


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Of logits, relative."""
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b))


if __name__ == "__main__":
    main(sys.argv[1:])
