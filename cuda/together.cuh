// Products of 32 rows of a trellis type (types/trellis.cuh) and one column, computed by four warps on int8 tensor cores.
//
// A value of these types is a sum of four bytes, which tensor cores add while they multiply. Lane 4 g + t of a warp has rows
// g, g + 8, g + 16 and g + 24 of the 32, and of a unit the 32 elements that lanes t and 4 + t of eight have in decode().
// Register i of operand A is a state of row g + 8 (i & 1), of whose four bytes each is to be multiplied with the same activation;
// operand B has that activation four times. Column 2 t of B has activations of run t, and column 2 t + 1 those of run 4 + t, in
// the lanes whose A is from these runs, and zeros in all others: so a lane's results are the products of what it decodes
// itself, and its scales are at hand. A lane with states of run t makes column 2 t + 1 of no use, and the other way round;
// hence there are sums for either, which costs registers but no instruction.
//
// Units are divided among the four warps as row_products divides them among the lanes of one, and terms are added in its
// order: results have the bits that two to eight columns have.
#pragma once
#include "products.cuh"

constexpr int ROWS_TOGETHER = 32, WARPS_TOGETHER = 4;

// Of a run: its activations four times each, and behind them once; 16 bytes more keep runs t and 4 + t in different banks.
// Behind the eight runs are zeros, which lanes read that have no activations.
constexpr unsigned ONCE_BYTES = 32, RUN_BYTES = 128 + ONCE_BYTES + 16, ZEROS = 8 * RUN_BYTES, UNIT_BYTES = 9 * RUN_BYTES;

struct Together {
    uint8_t columns[WARPS_TOGETHER][UNIT_BYTES];
    // sums of the units of a warp, of each row and run
    float sums[WARPS_TOGETHER][ROWS_TOGETHER][8];
};

IKQ_DEV uint4 four_of_each(uint32_t codes) {
    return {permute(codes, 0, 0x0000u), permute(codes, 0, 0x1111u), permute(codes, 0, 0x2222u), permute(codes, 0, 0x3333u)};
}
IKQ_DEV void words_of(const uint4 &v, uint32_t (&out)[4]) {
    out[0] = v.x;
    out[1] = v.y;
    out[2] = v.z;
    out[3] = v.w;
}

// What a lane needs of a unit.
template <class T> struct UnitTogether {
    typename T::Packed weights[4][2]; // of each row and run
    float scales[2];                  // of activations
    uint2 codes;                      // eight activations, for all lanes
};

// Where the next unit of a warp is.
template <class T> struct NextUnit {
    Fields<typename T::Form> rows[4];
    const int8_t *codes;
    const float2 *ds;

    IKQ_METHOD void load(UnitTogether<T> &unit, int t) const {
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int run = 0; run < 2; run++) unit.weights[r][run] = T::packed(rows[r], t + 4 * run);
        unit.codes = load_8(codes);
        unit.scales[0] = load_f32(ds);
        unit.scales[1] = load_f32(ds + 4);
    }
    IKQ_METHOD void skip(unsigned units) {
#pragma unroll
        for (int r = 0; r < 4; r++) rows[r].skip(units);
        codes += 256 * units;
        ds += 8 * units;
    }
};

// Stores the lane's activations where all lanes of the warp find them.
IKQ_DEV void store_codes(const uint2 &codes, uint8_t *columns, int lane) {
    uint8_t *run = columns + RUN_BYTES * unsigned(lane >> 2);
    uint4 *four = reinterpret_cast<uint4 *>(run) + 2 * (lane & 3);
    four[0] = four_of_each(codes.x);
    four[1] = four_of_each(codes.y);
    reinterpret_cast<uint2 *>(run + 128)[lane & 3] = codes;
}

// Adds the products of a unit; `own` is where this lane has its activations, or zeros.
template <class T> IKQ_DEV void add_unit(const UnitTogether<T> &unit, const uint8_t *own, int t, float (&sum)[4][2]) {
    const uint4 *b = reinterpret_cast<const uint4 *>(own);
    // STATE_OFFSET times the sum of activations, with which all products begin
    int start[4] = {0, 0, 0, 0};
    const uint32_t offset = uint32_t(STATE_OFFSET & 255) * ONES, offsets[4] = {offset, offset, offset, offset};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t codes[4];
        words_of(b[8 + i], codes);
        mma_s8_k32(start, offsets, codes, start);
        mma_s8_k32(start, offsets, codes + 2, start);
    }
    int dot[2][2][4]; // of each 16 rows and each run
#pragma unroll
    for (int tile = 0; tile < 2; tile++)
#pragma unroll
        for (int run = 0; run < 2; run++)
#pragma unroll
            for (int i = 0; i < 4; i++) dot[tile][run][i] = start[i];
#pragma unroll
    for (int s = 0; s < 32 / T::VALUES; s++) {
        uint32_t seed[4][2];
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int run = 0; run < 2; run++) seed[r][run] = T::seed(unit.weights[r][run], s);
#pragma unroll
        for (int k = 0; k < T::VALUES; k += 4) {
            uint32_t x[4];
            words_of(b[(s * T::VALUES + k) / 4], x);
#pragma unroll
            for (int half = 0; half < 4; half += 2)
#pragma unroll
                for (int tile = 0; tile < 2; tile++)
#pragma unroll
                    for (int run = 0; run < 2; run++) {
                        uint32_t a[4];
#pragma unroll
                        for (int i = 0; i < 4; i++) a[i] = state(seed[2 * tile + (i & 1)][run], k + half + (i >> 1) + 1);
                        mma_s8_k32(dot[tile][run], a, x + half, dot[tile][run]);
                    }
        }
    }
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int run = 0; run < 2; run++) {
            const int scale = T::scaled(unit.weights[r][run], t + 4 * run);
            sum[r][run] = with_run(sum[r][run], scale * dot[r >> 1][run][2 * (r & 1) + run], unit.scales[run]);
        }
}

// Computes the sums of a warp, of four that do the same: of 32 rows, of which `count` are there, and column 0.
template <class T> IKQ_DEV void add_together(const uint8_t *rows, int count, const Columns &x, int warp, Together &shared) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    uint8_t *columns = shared.columns[warp];
    NextUnit<T> next;
#pragma unroll
    for (int r = 0; r < 4; r++) {
        const int row = 8 * r + g;
        next.rows[r] = fields_of<T>(rows + (row < count ? row : count - 1) * row_bytes<T>(x.n), x.n, warp);
    }
    next.codes = static_cast<const int8_t *>(x.x) + 256 * warp + 8 * lane;
    next.ds = x.ds + 8 * warp + t;
    if (lane < int(RUN_BYTES / 16)) reinterpret_cast<uint4 *>(columns + ZEROS)[lane] = {0, 0, 0, 0};
    // lanes of column g whose states are those of the column's run; others begin where they are in no bank of these
    const uint8_t *own = columns + (g >> 1 == t ? RUN_BYTES * unsigned(t + 4 * (g & 1)) : ZEROS);
    float sum[4][2] = {};
    int left = (x.n / 256 + WARPS_TOGETHER - 1 - warp) / WARPS_TOGETHER; // units of this warp
    UnitTogether<T> even, odd; // by turns, so that a unit stays in the registers that it was loaded into
    const auto multiply = [&](const UnitTogether<T> &unit, UnitTogether<T> &other) {
        store_codes(unit.codes, columns, lane);
        __syncwarp();
        // the last unit is loaded again, which takes no branch
        left--;
        next.skip(left ? WARPS_TOGETHER : 0);
        next.load(other, t);
        add_unit(unit, own, t, sum);
        __syncwarp(); // nobody reads the activations any more
    };
    if (left) {
        next.load(even, t);
        for (;;) {
            multiply(even, odd);
            if (!left) break;
            multiply(odd, even);
            if (!left) break;
        }
    }
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int run = 0; run < 2; run++) shared.sums[warp][8 * r + g][t + 4 * run] = sum[r][run];
}

// The product of row `number` of the 32, behind a barrier of those who computed their sums; four neighbouring lanes get it,
// of which this one is number t. Of rows that are not there it is that of the last one.
template <class T>
IKQ_DEV float product_together(const Together &shared, const uint8_t *rows, int count, int n, int number, int t) {
    float of_run[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const auto part = [&](int warp) { return shared.sums[warp][number][t + 4 * i]; };
        of_run[i] = (part(0) + part(2)) + (part(1) + part(3));
    }
    float sum = of_run[0] + of_run[1];
    sum += __shfl_xor_sync(ALL_LANES, sum, 2);
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    const uint8_t *row = rows + (number < count ? number : count - 1) * row_bytes<T>(n);
    return scaled_by_row<T>(sum * (1.0f / (1 << T::SCALE_BITS)), row, n);
}

// The product of the row that is number threadIdx.x / 4 of the block's 32, which has 128 threads.
template <class T>
IKQ_DEV float block_product(const uint8_t *matrix, int n_rows, const Columns &x, Together &shared) {
    const int first = ROWS_TOGETHER * int(blockIdx.x), number = threadIdx.x >> 2;
    const uint8_t *rows = matrix + first * row_bytes<T>(x.n);
    add_together<T>(rows, n_rows - first, x, threadIdx.x >> 5, shared);
    __syncthreads();
    return product_together<T>(shared, rows, n_rows - first, x.n, number, threadIdx.x & 3);
}
