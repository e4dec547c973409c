"""What to weigh the columns of an expert by that few calibration tokens, or none, have reached.

    python benches/expert_statistics.py [--types iq2_ks,iq4_ks] > benches/results/expert_statistics.md

For every expert of the tiny MoE in turn: statistics of n of its tokens (drawn from text beyond the oracle's) stand for
all that is known of it, next to the other experts' full ones. The expert is quantized with each candidate; its
error is weighted by the oracle's statistics (20 windows) and given relative to quantizing with these.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

import ikq
from ikq.models import model_spec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from numpy_model import NumpyModel  # noqa: E402

MODELS = ROOT.parent / "shared" / "models"
N_TOKENS = (0, 1, 4, 16, 64, 256)
PRIOR_TOKENS = 64


class Watched(NumpyModel):
    """Keeps the squared inputs of experts' matrices."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.squares: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)

    def linear(self, linear, x, expert=None):  # type: ignore[no-untyped-def]
        if expert is not None and ("up_exps" in linear.weight or "down_exps" in linear.weight):
            self.squares[linear.weight, expert].append(np.square(x, dtype=np.float64))
        return super().linear(linear, x, expert)


def in_common(values: np.ndarray) -> float:
    """Share of the mean over experts (rows) that tells columns apart, by an analysis of variance."""
    x = values / values.mean(1, keepdims=True)
    return max(0.0, 1 - x.var(0, ddof=1).mean() / (len(x) * x.mean(0).var(ddof=1)))


def candidates(
    own: np.ndarray | None, n: int, others: np.ndarray, counts: np.ndarray
) -> dict[str, np.ndarray]:
    pooled = np.average(others, axis=0, weights=counts)
    prior = pooled.mean() + in_common(others) * (pooled - pooled.mean())
    found = {"equal": np.ones_like(pooled), "pooled": pooled, "prior": prior}
    if own is not None:
        found |= {"own": own, "own with prior": (n * own + PRIOR_TOKENS * prior) / (n + PRIOR_TOKENS)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--types", default="iq2_ks,iq4_ks")
    types = parser.parse_args().types.split(",")
    reader = ikq.GGUFReader(MODELS / "tiny-moe-bf16.gguf")
    text = (MODELS / "text" / "calibration.txt").read_text()
    ids = ikq.Tokenizer.from_reader(reader).encode(text)
    model = Watched(reader, model_spec(reader))
    for window in range(25, 74, 7):
        model.logits(ids[512 * window : 512 * (window + 1)])
    oracle = np.load(MODELS / "tiny-moe-hf-imatrix.npz")
    rng = np.random.default_rng(0)
    columns = ["equal", "pooled", "prior", "own", "own with prior"]
    print("# Experts that few calibration tokens have reached\n")
    print(
        "Weighted squared error relative to quantizing with the true statistics, mean over experts and layers;"
    )
    print("made by `benches/expert_statistics.py`, which says what is measured.\n")
    print("| type | matrices | tokens | in common | " + " | ".join(columns) + " |")
    print("|---|---|--:|--:|" + "--:|" * len(columns))
    for type_name in types:
        for role in ("ffn_up_exps", "ffn_down_exps"):
            for n in N_TOKENS:
                errors, common = defaultdict(list), []
                for (name, expert), squares in model.squares.items():
                    rows = np.concatenate(squares)
                    if role not in name or len(rows) < n:
                        continue
                    counts = oracle[f"{name}.counts"].reshape(-1)
                    true = oracle[f"{name}.in_sum2"] / counts[:, None]
                    rest = np.arange(len(true)) != expert
                    own = rows[rng.permutation(len(rows))[:n]].mean(0) if n else None
                    x = reader.tensors[name].dequantize()[expert]
                    common.append(in_common(true[rest]))

                    def error(w: np.ndarray) -> float:
                        q = ikq.quantize(x, type_name, w.astype(np.float32))  # noqa: B023
                        y = ikq.dequantize(q, type_name, x.shape[1])  # noqa: B023
                        return float((np.square(y - x) * true[expert]).sum())  # noqa: B023

                    best = error(true[expert])
                    for key, w in candidates(own, n, true[rest], counts[rest]).items():
                        errors[key].append(error(w) / best)
                cells = " | ".join(f"{np.mean(errors[c]):.3f}" if errors[c] else "" for c in columns)
                print(f"| {type_name} | {role} | {n} | {np.mean(common):.3f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
