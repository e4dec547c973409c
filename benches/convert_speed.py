"""`ikq convert` of a synthetic checkpoint to bf16, beside `cp` of the output and, where it is given, another converter.

python benches/convert_speed.py FOLDER [--gigabytes 3] [--runs 5] [--other 'PYTHON convert_hf_to_gguf.py']

Commands take turns, each with its process's start; files are in the page cache. Two times each: until the command ends, and
until the disk has the output as well (`sync -f`). `ikq convert` itself waits for the disk before the output has its name, so
only the second compares like with like; the first is shown because it is what people see of `cp`.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import shutil
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

AT_LEAST_OF_CP = 0.8
AT_LEAST_OTHER = 5.0
WIDTH, FF, HEADS, VOCAB = 2048, 8192, 16, 320


def checkpoint(folder: Path, n_bytes: float) -> Path:
    """A Llama of random bfloat16 weights in shards of a gigabyte, with a SentencePiece model of a few pieces."""
    per_layer = 2 * (4 * WIDTH * WIDTH + 3 * WIDTH * FF)
    n_layers = max(1, round(n_bytes / per_layer))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": FF,
        "num_hidden_layers": n_layers, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": VOCAB,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    shapes = {"model.embed_tokens.weight": (VOCAB, WIDTH)}
    for i in range(n_layers):
        name = f"model.layers.{i}."
        shapes |= {f"{name}self_attn.{p}_proj.weight": (WIDTH, WIDTH) for p in "qkvo"}
        shapes |= {f"{name}mlp.{p}_proj.weight": (FF, WIDTH) for p in ("gate", "up")}
        shapes[f"{name}mlp.down_proj.weight"] = (WIDTH, FF)
        shapes |= {f"{name}{p}_layernorm.weight": (WIDTH,) for p in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCAB, WIDTH)}
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        n = 2 * int(np.prod(shape))
        if size + n > 1e9:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += n
    rng = np.random.default_rng(0)
    where = {}
    for i, shard in enumerate(shards):
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        where |= dict.fromkeys(shard, name)
        write_shard(folder / name, shard, rng)
    index = {
        "metadata": {"total_size": sum(2 * int(np.prod(s)) for s in shapes.values())},
        "weight_map": where,
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    header, at = {}, 0
    for name, shape in shapes.items():
        n = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            # every exponent is that of a small number; all other bits are random
            bits = rng.integers(0, 1 << 16, int(np.prod(shape)), dtype=np.uint16)
            file.write(((bits & 0x81FF) | 0x3C00).tobytes())


def write_tokenizer(folder: Path) -> None:
    """A SentencePiece model of bytes and letters, by the fields of its published description."""

    def varint(n: int) -> bytes:
        out = b""
        while n > 127:
            out += bytes([n & 127 | 128])
            n >>= 7
        return out + bytes([n])

    def text(field: int, value: bytes) -> bytes:
        return varint(field << 3 | 2) + varint(len(value)) + value

    def piece(value: str, score: float, kind: int) -> bytes:
        fields = (
            text(1, value.encode())
            + varint(2 << 3 | 5)
            + struct.pack("<f", score)
            + varint(3 << 3)
            + varint(kind)
        )
        return text(1, fields)

    pieces = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3)
    for byte in range(256):
        pieces += piece(f"<0x{byte:02X}>", 0, 6)
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *".,;:!?-'"]
    letters = letters[: VOCAB - 259]
    for i, letter in enumerate(letters):
        pieces += piece(letter, -float(i), 1)
    # BPE, with pieces for bytes
    trainer = text(2, varint(3 << 3) + varint(2) + varint(35 << 3) + varint(1))
    normalizer = text(3, text(1, b"identity") + varint(3 << 3) + varint(1))
    (folder / "tokenizer.model").write_bytes(pieces + trainer + normalizer)


def timed(command: list[str], out: Path) -> tuple[float, float]:
    out.unlink(missing_ok=True)
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    ended = time.perf_counter() - start
    subprocess.run(["sync", "-f", out], check=True)
    return ended, time.perf_counter() - start


def machine() -> str:
    found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{found[0].partition(': ')[2] if found else platform.machine()}, {len(found)} CPUs"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for checkpoint and outputs; those are removed")
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--other", help="command of another converter")
    args = parser.parse_args()
    source = args.folder / "checkpoint"
    if not source.exists():
        checkpoint(source, args.gigabytes * 1e9)
    outs = {name: args.folder / f"{name}.gguf" for name in ("cp", "ikq", "other")}
    original = args.folder / "original.gguf"
    convert = [sys.executable, "-m", "ikq", "convert", "--outtype", "bf16", str(source)]
    subprocess.run([*convert, str(original)], check=True, stdout=subprocess.DEVNULL)
    commands = {
        "cp": ["cp", "--reflink=never", str(original), str(outs["cp"])],
        "ikq": [*convert, str(outs["ikq"])],
    }
    if args.other:
        commands["other"] = [
            *shlex.split(args.other),
            "--outtype",
            "bf16",
            "--outfile",
            str(outs["other"]),
            str(source),
        ]
    # whatever is first pays for what the machine did before
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for run in range(args.runs + 1):
        for name, command in commands.items():
            if name == "other" and run > 2:
                continue
            took = timed(command, outs[name])
            if run:
                times[name].append(took)
            outs[name].unlink()
    size = original.stat().st_size
    print(f"{machine()}; {size / 1e9:.2f} GB, medians of {args.runs} in turns\n")
    print(
        "| command | until it ends, s | GB/s | until the disk has it, s | GB/s |\n| --- | --: | --: | --: | --: |"
    )
    medians = {
        name: [statistics.median(t[i] for t in found) for i in (0, 1)] for name, found in times.items()
    }
    for name, (ended, synced) in medians.items():
        print(
            f"| {name} | {ended:.2f} | {size / ended / 1e9:.2f} | {synced:.2f} | {size / synced / 1e9:.2f} |"
        )
    ratios = [medians["cp"][i] / medians["ikq"][i] for i in (0, 1)]
    print(
        f"\nikq has {ratios[1]:.0%} of the speed of cp until the disk has it, {ratios[0]:.0%} until the command ends"
    )
    good = ratios[1] >= AT_LEAST_OF_CP
    if "other" in medians:
        faster = medians["other"][1] / medians["ikq"][1]
        print(f"ikq has {faster:.1f} times the speed of the other converter")
        good = good and faster >= AT_LEAST_OTHER
    original.unlink()
    shutil.rmtree(source)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
