"""What the emulator's tensor cores and asynchronous copies do, against the formulas of the PTX manual.

The manual gives an element's place (row, column) for every lane and every element of its fragments. Here stands what it
says, element by element, while the emulator has it by registers.
"""

import numpy as np
import pytest
from emulator import ORDERS, aligned, module, needs_gxx, on_device

pytestmark = needs_gxx

KERNELS = """
#include "ikq_dev.cuh"
IKQ_KERNEL(32, s8_k32, (const uint32_t *a, const uint32_t *b, int *c)) {
    const int i = threadIdx.x;
    int before[4], sum[4];
    for (int k = 0; k < 4; k++) before[k] = c[4 * i + k];
    mma_s8_k32(sum, a + 4 * i, b + 2 * i, before);
    for (int k = 0; k < 4; k++) c[4 * i + k] = sum[k];
}
IKQ_KERNEL(32, s8_k16, (const uint32_t *a, const uint32_t *b, int *c)) {
    const int i = threadIdx.x;
    int before[4], sum[4];
    for (int k = 0; k < 4; k++) before[k] = c[4 * i + k];
    mma_s8_k16(sum, a + 2 * i, b + i, before);
    for (int k = 0; k < 4; k++) c[4 * i + k] = sum[k];
}
IKQ_KERNEL(32, tf32_k8, (const uint32_t *a, const uint32_t *b, float *c)) {
    const int i = threadIdx.x;
    float sum[4];
    for (int k = 0; k < 4; k++) sum[k] = c[4 * i + k];
    mma_tf32_k8(sum, a + 4 * i, b + 2 * i);
    for (int k = 0; k < 4; k++) c[4 * i + k] = sum[k];
}
IKQ_KERNEL(32, f16_k16, (const uint32_t *a, const uint32_t *b, float *c)) {
    const int i = threadIdx.x;
    float sum[4];
    for (int k = 0; k < 4; k++) sum[k] = c[4 * i + k];
    mma_f16_k16(sum, a + 4 * i, b + 2 * i);
    for (int k = 0; k < 4; k++) c[4 * i + k] = sum[k];
}
IKQ_KERNEL(32, transposed, (const uint4 *rows, uint32_t *four, int skew)) {
    IKQ_SHARED(uint4, shared, 33);
    const int i = threadIdx.x;
    shared[i] = rows[i];
    __syncthreads();
    uint32_t words[4];
    load_transposed(reinterpret_cast<const uint8_t *>(shared + (7 * i & 31)) + skew, words);
    for (int k = 0; k < 4; k++) four[4 * i + k] = words[k];
}
IKQ_KERNEL(64, matrices, (const uint4 *rows, uint32_t *four, uint32_t *two, int skew)) {
    IKQ_SHARED(uint4, shared, 65);
    shared[threadIdx.x] = rows[threadIdx.x];
    __syncthreads();
    const int i = threadIdx.x & 31, warp = threadIdx.x >> 5;
    uint32_t words[4], fewer[2];
    // rows in an order of their own: lane i passes row 7 i mod 32 of its warp's
    const uint4 *row = shared + 32 * warp + (7 * i & 31);
    load_matrices(reinterpret_cast<const uint8_t *>(row) + skew, words);
    load_matrices(row, fewer);
    for (int k = 0; k < 4; k++) four[4 * threadIdx.x + k] = words[k];
    for (int k = 0; k < 2; k++) two[2 * threadIdx.x + k] = fewer[k];
}
IKQ_KERNEL(32, copies, (const uint4 *from, uint32_t *seen)) {
    IKQ_SHARED(uint4, to, 96);
    const int i = threadIdx.x;
    for (int g = 0; g < 3; g++) to[32 * g + i] = {0u, 0u, 0u, 0u};
    for (int g = 0; g < 3; g++) {
        copy_async_16(to + 32 * g + i, from + 32 * g + i);
        copy_async_commit();
    }
    for (int g = 0; g < 3; g++) seen[96 * 0 + 32 * g + i] = to[32 * g + i].w;
    copy_async_wait<2>();
    for (int g = 0; g < 3; g++) seen[96 * 1 + 32 * g + i] = to[32 * g + i].w;
    copy_async_wait<0>();
    for (int g = 0; g < 3; g++) seen[96 * 2 + 32 * g + i] = to[32 * g + i].w;
}
"""
LANES = range(32)


def lane_of(lane):
    """The manual's groupID and threadID_in_group."""
    return lane >> 2, lane % 4


def place_a_s8(lane, i, k):
    """Row and column of element i of a lane's fragment of A, m16n8k16 or m16n8k32 with int8."""
    group, thread = lane_of(lane)
    if k == 16:
        return (group if i < 4 else group + 8), thread * 4 + (i & 3)
    row = group if (0 <= i < 4) or (8 <= i < 12) else group + 8
    return row, thread * 4 + (i & 3) + (16 if i >= 8 else 0)


def place_b_s8(lane, i, k):
    group, thread = lane_of(lane)
    return thread * 4 + (i & 3) + (16 if k == 32 and i >= 4 else 0), group


def place_c(lane, i):
    group, thread = lane_of(lane)
    return (group if i < 2 else group + 8), thread * 2 + (i & 1)


def fragments(matrix, place, count):
    """The elements of all lanes, `(32, count)`."""
    return on_device(np.array([[matrix[place(lane, i)] for i in range(count)] for lane in LANES]))


@pytest.mark.parametrize("k", [16, 32])
@pytest.mark.parametrize("order", ORDERS)
def test_integer_products(k, order):
    rng = np.random.default_rng(k)
    a, b = (rng.integers(-128, 128, size).astype(np.int8) for size in ((16, k), (k, 8)))
    c = rng.integers(-(1 << 20), 1 << 20, (16, 8)).astype(np.int32)
    of_a = fragments(a, lambda lane, i: place_a_s8(lane, i, k), k // 2)
    of_b = fragments(b, lambda lane, i: place_b_s8(lane, i, k), k // 4)
    of_c = fragments(c, place_c, 4)
    module(KERNELS).run(f"s8_k{k}", 1, 32, of_a, of_b, of_c, order=order)
    want = a.astype(np.int32) @ b.astype(np.int32) + c
    assert (of_c == fragments(want, place_c, 4)).all()


def test_float_products():
    rng = np.random.default_rng(5)
    a, b, c = (rng.normal(size=size).astype(np.float32) for size in ((16, 8), (8, 8), (16, 8)))

    def place_a(lane, i):
        group, thread = lane_of(lane)
        return (group if i in (0, 2) else group + 8), thread + (0 if i < 2 else 4)

    def place_b(lane, i):
        group, thread = lane_of(lane)
        return thread + 4 * i, group

    of_a, of_b, of_c = fragments(a, place_a, 4), fragments(b, place_b, 2), fragments(c, place_c, 4)
    module(KERNELS).run("tf32_k8", 1, 32, of_a, of_b, of_c)

    def cut(x):
        return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)

    want = (cut(a) @ cut(b) + c).astype(np.float32)
    assert np.abs(of_c - fragments(want, place_c, 4)).max() <= 2.0**-22 * np.abs(want).max()


@pytest.mark.parametrize("order", ORDERS)
def test_products_of_halves(order):
    rng = np.random.default_rng(6)
    a, b = (rng.normal(size=size).astype(np.float16) for size in ((16, 16), (16, 8)))
    c = rng.normal(size=(16, 8)).astype(np.float32)

    def place_a(lane, i):
        group, thread = lane_of(lane)
        row = group if (0 <= i < 2) or (4 <= i < 6) else group + 8
        return row, thread * 2 + (i & 1) + (0 if i < 4 else 8)

    def place_b(lane, i):
        group, thread = lane_of(lane)
        return thread * 2 + (i & 1) + (0 if i < 2 else 8), group

    of_a, of_b, of_c = fragments(a, place_a, 8), fragments(b, place_b, 4), fragments(c, place_c, 4)
    module(KERNELS).run("f16_k16", 1, 32, of_a, of_b, of_c, order=order)
    want = a.astype(np.float64) @ b.astype(np.float64) + c
    assert (
        np.abs(of_c - fragments(want.astype(np.float32), place_c, 4)).max() <= 2.0**-22 * np.abs(want).max()
    )


@pytest.mark.parametrize("order", ORDERS)
def test_matrices_that_are_transposed(order):
    """A lane gets what it would of the transposed matrix: halves 2 (i % 4) and the next of row i / 4 of that."""
    rows = np.random.default_rng(2).integers(0, 1 << 16, (32, 8), dtype=np.uint16)
    four = aligned((32, 4), np.uint32)
    module(KERNELS).run("transposed", 1, 32, on_device(rows), four, 0, order=order)
    for m in range(4):
        matrix = rows[[7 * (8 * m + r) % 32 for r in range(8)]].T.copy()
        assert (four[:, m] == matrix.view(np.uint32).ravel()).all()
    assert module(KERNELS).launch("transposed", 1, 32, on_device(rows), four, 4) != 0


@pytest.mark.parametrize("order", ORDERS)
def test_matrices_of_shared_memory(order):
    """Row r of matrix m comes from the address of lane 8 m + r; lane i gets word i % 4 of row i / 4."""
    rows = np.random.default_rng(1).integers(0, 1 << 32, (64, 4), dtype=np.uint32)
    four, two = aligned((64, 4), np.uint32), aligned((64, 2), np.uint32)
    module(KERNELS).run("matrices", 1, 64, on_device(rows), four, two, 0, order=order)
    for thread in range(64):
        own, lane = rows[thread // 32 * 32 :][:32], thread % 32
        want = [own[7 * (8 * m + lane // 4) % 32, lane % 4] for m in range(4)]
        assert (four[thread] == want).all()
        assert (two[thread] == want[:2]).all()


def test_matrices_must_be_aligned(capfd):
    rows, four, two = aligned((64, 4), np.uint32), aligned((64, 4), np.uint32), aligned((64, 2), np.uint32)
    assert module(KERNELS).launch("matrices", 1, 64, rows, four, two, 4) != 0


def test_copies_land_at_the_wait_and_not_before():
    data = np.arange(96 * 4, dtype=np.uint32).reshape(96, 4)
    seen = aligned((3, 3, 32), np.uint32)
    module(KERNELS).run("copies", 1, 32, on_device(data), seen)
    want = data[:, 3].reshape(3, 32)
    nothing = np.full(32, 0xFFFFFFFF, np.uint32)
    assert (seen[0] == nothing).all(), "issued, but not there yet"
    assert (seen[1] == [want[0], nothing, nothing]).all(), "all groups but the newest two"
    assert (seen[2] == want).all()
