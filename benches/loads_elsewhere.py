"""Every TYPE and every tensor type, written by ikq, loaded and run by the programs that know it.

    python benches/loads_elsewhere.py --ik PATH/llama-perplexity --llama PATH/llama-perplexity --text heldout.txt

Quantizes the bundled tiny MoE once per name of TYPE (its rules included) and once per tensor type that no name
stands for purely, and runs the first windows of the text. What is looked for: the file loads, and its
perplexity is finite and near what the number of bits leads to expect.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

import ikq

DATA = Path(__file__).parent.parent / "tests" / "data"
MODEL = DATA / "tiny-moe-bf16.gguf"
IMATRIX = DATA / "imatrix-plain.dat"


def perplexity(program: str, model: Path, text: str, chunks: int) -> str:
    """The final estimate, or the last words of a program that failed."""
    words = [
        program,
        "-m",
        str(model),
        "-f",
        text,
        "-c",
        "512",
        "--no-escape",
        "-t",
        "2",
        "--chunks",
        str(chunks),
    ]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", cwd=model.parent)
    output = done.stdout + done.stderr
    found = re.search(r"Final estimate: PPL.* = (\S+) \+/-", output)
    if found:
        return found[1]
    said = [line for line in output.splitlines() if re.search(r"GGML_ASSERT|fatal error|error:", line)]
    return f"failed: {said[0].rsplit('/', 1)[-1][:90]}" if said else f"failed: exit code {done.returncode}"


def files(wanted: list[str]) -> list[tuple[str, str, dict[str, object]]]:
    """(name, TYPE, options) of everything to write."""
    everything: list[tuple[str, str, dict[str, object]]] = [(f.name, f.name, {}) for f in ikq.ftypes()]
    plain = {"token_embedding_type": "q8_0", "output_tensor_type": "q8_0"}
    for t in ikq.QuantType:
        if t.can_encode:
            rule = {"custom_q": rf"blk\.[0-9]+\.(attn_(q|k|v|output)|ffn_(gate|up|down)_exps)={t.name}"}
            everything.append((f"all {t.name}", "F16", rule | plain))
    return [f for f in everything if not wanted or f[0] in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ik", required=True)
    parser.add_argument("--llama", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument(
        "names", nargs="*", help="only these; `all IQ4_KS` for the type in every block matrix"
    )
    args = parser.parse_args()
    text = str(Path(args.text).resolve())
    programs = {"ik_llama.cpp": str(Path(args.ik).resolve()), "llama.cpp": str(Path(args.llama).resolve())}
    print("| file | types in it | MB | ik_llama.cpp | llama.cpp |\n| --- | --- | --: | --: | --: |")
    for name, type_name, options in files(args.names):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "model.gguf"
            plan = ikq.plan_quantization(MODEL, out, type_name, imatrix=IMATRIX, **options)  # type: ignore[arg-type]
            plan.run()
            types = [t.to_type for t in plan.tensors if isinstance(t.to_type, ikq.QuantType)]
            used = sorted({t.name for t in types} - {"F32"})
            figures = []
            for program, path in programs.items():
                known = all(program in t.known_to for t in types)
                figures.append(perplexity(path, out, text, args.chunks) if known else "-")
            size = out.stat().st_size / 1e6
            print(f"| {name} | {', '.join(used)} | {size:.2f} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
