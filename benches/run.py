"""`make bench`: what this machine reaches, as Markdown on standard output.

1. decode throughput per type and instruction set, beside the machine's read bandwidth
2. encode speed per type and instruction set
3. encode quality: error of every encoder as a ratio to the reference's
4. with IKQ_REFERENCE_QUANTIZE=PATH/llama-quantize: CPU time of whole commands against it, interleaved
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parent.parent


def section(title: str, *words: str) -> None:
    print(f"\n## {title}\n\n`{' '.join(w.replace(sys.executable, 'python') for w in words)}`\n", flush=True)
    subprocess.run(words, cwd=TOP, check=True)


def example(crate: str, name: str) -> list[str]:
    return ["cargo", "run", "--quiet", "--release", "--locked", "-p", crate, "--example", name]


def main() -> None:
    section("Decode throughput", *example("ikq-decode", "throughput"))
    section("Encode speed", *example("ikq-quantize", "encode_speed"))
    section("Encode quality", sys.executable, "benches/encode_quality.py")
    reference = os.environ.get("IKQ_REFERENCE_QUANTIZE")
    if reference:
        words = [sys.executable, "benches/quantize_against.py", "--reference", f"reference={reference}"]
        section("Against the reference", *words)
    else:
        print("\nIKQ_REFERENCE_QUANTIZE is not set: no comparison with another quantizer.")


if __name__ == "__main__":
    main()
