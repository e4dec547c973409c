"""Errors planted in copies of the kernel sources, each of which some check must see."""

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from emulator import CUDA

# what it is, file, what stands there, what stands there instead
MISSING_BARRIER = ("upgate.cu", "    __syncthreads();\n    if (warp", "    if (warp")
MISSING_WARP_BARRIER = (
    "router.cu",
    "        __syncwarp();\n        if (lane == 0) choice[at] = -INFINITY;\n",
    "        if (lane == 0) choice[at] = -INFINITY;\n",
)
ROW_TOO_MANY = ("mmv.cu", "    if (row >= n_rows) return; // a whole warp\n", "")
MISALIGNED_PLANE = (
    "types/legacy.cuh",
    "Planes<Seg<10, 16>, Seg<2, 8>, Seg<0, 2>>",
    "Planes<Seg<0, 2>, Seg<10, 16>, Seg<2, 8>>",
)
DIVERGENT_COLLECTIVE = (
    "quantized.cuh",
    "    const float most =",
    "    if ((threadIdx.x & 31) == 3) return;\n    const float most =",
)
BARRIER_NOT_REACHED = (
    "upgate.cu",
    "    __syncthreads();\n    if (warp",
    "    if (lane == 0) __syncthreads();\n    __syncwarp();\n    if (warp",
)
WRONG_OFFSET = ("types/kquants.cuh", "less(x, 32)", "less(x, 31)")
MIN_FORGOTTEN = ("products.cuh", "sum[c] -= f.min[r] * d_sum;", "sum[c] -= 0.0f * d_sum;")
COLUMN_MIXED_UP = ("products.cuh", "n * (c < count ? c : count - 1)", "n * (c < count ? 0 : count - 1)")

ROW_TOGETHER_TOO_MANY = ("together.cuh", "(row < count ? row : count - 1)", "(row < count ? row : row)")
BARRIER_OF_ACTIVATIONS = (
    "together.cuh",
    "        __syncwarp();\n        add_unit",
    "        add_unit",
)
BARRIER_OF_ROW_SUMS = (
    "together.cuh",
    "    __syncthreads();\n    return product_together",
    "    return product_together",
)
SCALE_OF_A_NEIGHBOUR_RUN = ("together.cuh", "unit.scales[run]);", "unit.scales[0]);")
ACTIVATIONS_OF_A_NEIGHBOUR = ("together.cuh", "RUN_BYTES * (t + 4 * (g & 1u))", "RUN_BYTES * t")

SIGN_FORGOTTEN = ("hadamard.cuh", "return (x ^ x >> 12) & 1 ? -size : size;", "return size;")
BARRIER_OF_A_TURN = (
    "hadamard.cuh",
    "        __syncthreads();\n        for (int i = threadIdx.x; i < n; i += blockDim.x) {\n            const bool before",
    "        for (int i = threadIdx.x; i < n; i += blockDim.x) {\n            const bool before",
)
DECAY_OF_A_TOKEN_TOO_FEW = (
    "delta.cu",
    "for (int m = i; m > lane; m--)",
    "for (int m = i - 1; m > lane; m--)",
)
BARRIER_OF_A_CHUNK = (
    "delta.cu",
    "        __syncthreads();\n        for (int i = first + warp; i < end; i += 4) {\n            float o",
    "        for (int i = first + warp; i < end; i += 4) {\n            float o",
)

COPY_NOT_AWAITED = ("matrix.cuh", "        copy_async_wait<0>();\n", "")
COPY_OVER_WHAT_IS_READ = (
    "matrix.cuh",
    "copy_columns(x, other, step + 1);",
    "copy_columns(x, tiles[step & 1], step + 1);",
)
BARRIER_OF_A_STEP = (
    "matrix.cuh",
    "        // now the step's tile is whole, and nobody reads the other one any more\n        __syncthreads();\n",
    "",
)
BARRIER_OF_RESULTS = (
    "mmq_upgate.cu",
    "    // now nobody reads the tiles any more, in whose place results are stored\n    __syncthreads();\n",
    "",
)
COLUMN_TOO_MANY = ("mmq.cu", "            if (column >= group.count) continue;\n", "")
ROW_OF_A_TILE_TOO_MANY = ("mmq.cu", "                    if (row >= n_rows) continue;\n", "")
BLOCKS_BEHIND_A_ROW = (
    "tile.cuh",
    "(there ? at / 32 : 0)",
    "at / 32",
)
CODES_BEHIND_A_ROW = ("tile.cuh", "if (column < unsigned(C) && at < from.n)", "if (column < unsigned(C))")
SCALE_OF_A_NEIGHBOUR = ("tile.cuh", "((row & 7u) << 2)", "((row & 6u) << 2)")
SCALES_OF_TOO_MANY = (
    "tile.cuh",
    "template <> struct Tiled<q4_k> : Sharing<32> {};",
    "template <> struct Tiled<q4_k> : Sharing<32> {};\ntemplate <> struct Tiled<q6_k> : Sharing<32> {};",
)
SCALE_OF_24_BITS = ("tile.cuh", "(uint32_t(__float_as_int(x)) + 2u) & ~3u", "uint32_t(__float_as_int(x))")

ATTEND = "attention_tiles.cu"
KEYS_NOT_AWAITED = (
    ATTEND,
    "            copy_async_wait<0>();\n            __syncthreads(); // the keys",
    "            __syncthreads(); // the keys",
)
VALUES_NOT_AWAITED = (ATTEND, "            if (!latent) copy_async_wait<0>();\n", "")
BARRIER_OF_KEYS = (
    ATTEND,
    "            __syncthreads(); // the keys are there",
    "            // the keys are there",
)
BARRIER_OF_VALUES = (ATTEND, "            __syncthreads(); // the values", "            // the values")
BARRIER_OF_LARGEST_SCORES = (
    ATTEND,
    "            if constexpr (PARTS > 1) {\n                __syncthreads();\n",
    "            if constexpr (PARTS > 1) {\n",
)
LATENT_KEYS_OVER_THE_SAME = (
    ATTEND,
    "stage_keys(at + KEYS, turn ? keys : values);",
    "stage_keys(at + KEYS, turn ? values : keys);",
)
POSITION_TOO_MANY = (ATTEND, "position >= seen.y", "position > seen.y")
POSITION_BEFORE_A_WINDOW = (ATTEND, "position < seen.x", "position + 1 < seen.x")
MASK_NOT_APPLIED = (ATTEND, "at + KEYS > all_to", "at >= all_to")
NOT_ALIGNED_TO_A_PAGE = (ATTEND, "from & ~(KEYS - 1)", "from")
SUMS_NOT_SCALED = (ATTEND, "acc[d][i] *= keep[i >> 1];", "acc[d][i] *= 1.0f;")
SPLITS_OF_THE_FIRST_COLUMN = (ATTEND, "tile_begin / span * span + split * span", "tile_begin + split * span")
HEAD_MIXED_UP = (ATTEND, "kv_head * per_column + of_run % per_column) * n_k", "kv_head * per_column) * n_k")
PART_OF_KEYS_MIXED_UP = (ATTEND, "at + 8 * (GROUPS * part + c)", "at + 8 * c")
CAP_NOT_SCALED = (ATTEND, "cap_2 = cap * LOG2_E", "cap_2 = cap")
ROWS_OF_OTHERS = (ATTEND, "if (row >= tile.count) continue; // no", "// no")
ROWS_THAT_ARE_NOT_SEEN = (
    "half_tile.cuh",
    "const bool there = row >= first && row < end;\n            for (int chunk",
    "const bool there = row >= first;\n            for (int chunk",
)
ENDS_NOT_CLEARED = (ATTEND, "        clear_ends<KEYS>(n_k, rows_k, keys);\n", "")


@contextmanager
def planted(error):
    """A folder with the sources of `cuda/` and the error."""
    file, there, instead = error
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "cuda"
        shutil.copytree(CUDA, folder)
        if file == "types/legacy.cuh":  # the file's planes are named by number
            swap(
                folder / file,
                "unit.field<0>(l)",
                "unit.field<1>(l)",
                behind="struct q6_0",
            )
        swap(folder / file, there, instead)
        yield folder


def swap(path: Path, there: str, instead: str, behind: str = "") -> None:
    text = path.read_text()
    at = text.index(there, text.index(behind))
    path.write_text(text[:at] + instead + text[at + len(there) :])
