"""Perplexity of files that ikq wrote, by another program's engine or ikq's own, against stored figures.

    python benches/file_perplexity.py --program PATH/llama-perplexity --text heldout.txt \\
        --stored tiny-moe-quant-reference.json --types Q8_0 Q4_0 ...
    python benches/file_perplexity.py --tokenizer tokenizer.json --text heldout.txt --stored ... --types ...

Every block matrix becomes TYPE, `token_embd` and `output` Q8_0, the router stays F32: the setting of the
stored figures. The text is read literally (`--no-escape`), windows of 512.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from engine_perplexity import perplexity as own_perplexity
from engine_perplexity import tokenize
from numpy.typing import NDArray

import ikq

DATA = Path(__file__).parent.parent / "tests" / "data"


_FINAL = re.compile(r"Final estimate: PPL.* = ([\d.]+) \+/-")


def _told(program: str, model: Path, text: str, n_threads: int) -> str:
    """All that the program prints about a text."""
    words = [program, "-m", str(model), "-f", text, "-c", "512", "--no-escape", "-t", str(n_threads)]
    # the program leaves a log where it runs
    done = subprocess.run(words, capture_output=True, text=True, cwd=model.parent)
    if not _FINAL.search(done.stdout + done.stderr):
        raise SystemExit(f"{' '.join(words)}\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    return done.stdout + done.stderr


def perplexity(program: str, model: Path, text: str, n_threads: int) -> float:
    """The final estimate that the program prints."""
    found = _FINAL.search(_told(program, model, text, n_threads))
    assert found is not None
    return float(found[1])


def window_losses(program: Path, model: Path, text: Path, n_threads: int = 2) -> NDArray[np.float64]:
    """Mean loss of each window, from the running estimates that the program prints, of four decimals.

    Differences of two files are as exact as these: of window i, to i * 0.0001 / perplexity.
    """
    told = _told(str(program.resolve()), model, str(text.resolve()), n_threads)
    running = [float(found) for found in re.findall(r"\[\d+\]([\d.]+),", told)]
    sums = np.log(running) * np.arange(1, len(running) + 1)
    losses: NDArray[np.float64] = np.diff(sums, prepend=0.0)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--program", help="llama-perplexity; ikq's own engine unless given")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json of the model, for ikq's own engine")
    parser.add_argument("--text", required=True)
    parser.add_argument("--stored", type=Path, required=True)
    parser.add_argument("--types", nargs="+", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="ik_llama.cpp", help="what the figures call the program")
    parser.add_argument("--append", type=Path, help="a JSON-lines file for the figures")
    args = parser.parse_args()
    args.text = str(Path(args.text).resolve())
    if args.program:
        args.program = str(Path(args.program).resolve())
    elif args.tokenizer is None:
        parser.error("either --program or --tokenizer is needed")
    else:
        tokens = tokenize(args.tokenizer, Path(args.text))
        args.name = "ikq"
    # the command line of the reference names the plain type by its mix
    stored_name = {"Q4_K": "Q4_K_S"}
    stored = {
        (r["type"], r["imatrix"]): r.get("perplexity") for r in json.loads(args.stored.read_text())["rows"]
    }
    print("| type | imatrix | perplexity | stored | ratio |\n| --- | --- | --: | --: | --: |")
    for type_name in args.types:
        for imatrix in (None, DATA / "imatrix-plain.dat"):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "model.gguf"
                ikq.quantize_file(
                    DATA / "tiny-moe-bf16.gguf",
                    out,
                    type_name,
                    pure=True,
                    imatrix=imatrix,
                    token_embedding_type="q8_0",
                    output_tensor_type="q8_0",
                    ignore_imatrix_rules=True,
                )
                if args.program:
                    found = perplexity(args.program, out, args.text, args.threads)
                else:
                    with ikq.Model.load(out, n_ctx=512, n_threads=args.threads) as model:
                        found = own_perplexity(model, tokens)
            expected = stored.get((stored_name.get(type_name, type_name), imatrix is not None))
            if not isinstance(expected, float):
                expected = None
            ratio = f"{found / expected:.5f}" if expected else "-"
            print(
                f"| {type_name} | {'yes' if imatrix else 'no'} | {found:.4f} | {expected or '-'} | {ratio} |",
                flush=True,
            )
            if args.append:
                row = {
                    "type": type_name,
                    "imatrix": imatrix is not None,
                    "perplexity": found,
                    "stored": expected,
                }
                with args.append.open("a") as f:
                    f.write(json.dumps(row | {"program": args.name}) + "\n")


if __name__ == "__main__":
    main()
