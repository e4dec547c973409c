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

// Of a run: its activations four times each; 16 bytes more keep runs t and 4 + t in different banks. Behind the eight runs
// are zeros, which lanes read that have no activations.
constexpr unsigned RUN_BYTES = 128 + 16, ZEROS = 8 * RUN_BYTES, UNIT_BYTES = 9 * RUN_BYTES;

struct Together {
    uint8_t columns[WARPS_TOGETHER][2][UNIT_BYTES]; // of two units by turns
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
    uint2 codes;                      // activations 8 t to 8 t + 7 of the run of column g
};

// Where the next unit of a warp is.
template <class T> struct NextUnit {
    Fields<typename T::Form> rows[4];
    const int8_t *codes;
    const float2 *ds;

    // `ahead` is a constant number of units
    IKQ_METHOD void load(UnitTogether<T> &unit, unsigned ahead) const {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            auto row = rows[r];
            row.skip(ahead);
#pragma unroll
            for (int run = 0; run < 2; run++) unit.weights[r][run] = T::packed(row, run);
        }
        unit.codes = load_8(codes + 256 * ahead);
        unit.scales[0] = load_f32(ds + 8 * ahead);
        unit.scales[1] = load_f32(ds + 8 * ahead + 4);
    }
    IKQ_METHOD void skip(unsigned units) {
#pragma unroll
        for (int r = 0; r < 4; r++) rows[r].skip(units);
        codes += 256 * units;
        ds += 8 * units;
    }
};

// The run of column g of operand B.
IKQ_DEV unsigned run_of_column(unsigned g) { return (g >> 1) + 4 * (g & 1u); }

// Where a lane stores its activations, so that all lanes of the warp find them, and where it finds its own.
struct Places {
    shared_t four, own;
    IKQ_METHOD Places(shared_t columns, int lane) {
        const unsigned g = unsigned(lane) >> 2, t = unsigned(lane) & 3u;
        four = kept(columns + RUN_BYTES * run_of_column(g) + 32 * t);
        // lanes of column g whose states are those of the column's run; others read zeros
        own = kept(columns + (g >> 1 == t ? RUN_BYTES * (t + 4 * (g & 1u)) : ZEROS));
    }
    // `turn`, a constant, is which of both units
    IKQ_METHOD void store(unsigned turn, const uint2 &codes) const {
        store_shared_16(four + UNIT_BYTES * turn, four_of_each(codes.x));
        store_shared_16(four + UNIT_BYTES * turn + 16, four_of_each(codes.y));
    }
    // four activations four times each
    IKQ_METHOD void load(unsigned turn, int i, uint32_t (&out)[4]) const {
        words_of(load_shared_16(own + UNIT_BYTES * turn + 16 * i), out);
    }
};

// A sum S of products of integers that begins with START_BITS is the float M + S (matrix.cuh says why). So with a scale s, and
// with - M s, one multiplication and addition makes s S, rounded once, as if it were converted: M s is exact, as scales are
// small integers. Tensor cores make both floats of a scale that is in SCALE_BITS (types/trellis.cuh): these are the mantissa of a
// half without an exponent, 8 2^-24 times the scale and SCALE_ZERO; the other half of the word is 2^-14, which takes the latter
// away. They are multiplied with pairs of halves, -2^-9 and 2^-8, and 1.5 2^14 and -1.5 2^15: floats are 2^-29 times scales.
constexpr uint32_t SCALE_HALVES = 0x98001c00u, MAGIC_HALVES = 0x7600fa00u;
constexpr float OF_HALVES = 1 << 29;
// What the two sums begin with whose exclusive or has the scale: their upper halves stay as they are.
constexpr uint32_t FIRST_SUM = 0x04008000u, SECOND_SUM = 0x00008000u;

// Constants that the compiler would otherwise load again for each unit: powers of the generator's step, and whole operands.
constexpr uint32_t FOUR_OFFSETS = uint32_t(STATE_OFFSET & 255) * ONES, START_BITS = 0x4b400000u;
IKQ_OPAQUE uint32_t POWERS[8] = {power_of_step(1), power_of_step(2), power_of_step(3), power_of_step(4),
                                 power_of_step(5), power_of_step(6), power_of_step(7), power_of_step(8)};
IKQ_OPAQUE uint32_t OPERANDS[3][4] = {{FOUR_OFFSETS, FOUR_OFFSETS, FOUR_OFFSETS, FOUR_OFFSETS},
                                      {START_BITS, START_BITS, START_BITS, START_BITS},
                                      {FIRST_SUM, 0, 0, SECOND_SUM}};
template <class T> struct KeptConstants {
    uint32_t powers[T::VALUES], offsets[4], scale_factors[2], scale_halves[2], magic_halves[2];
    int start[4], scale_start[4];
    IKQ_METHOD KeptConstants(int lane) {
        // compilers see through the shuffle of what is the same for all lanes; they cannot know that this is
        const uint32_t zero = (gridDim.x + unsigned(lane)) >> 31;
#pragma unroll
        for (int i = 0; i < T::VALUES; i++) powers[i] = kept(POWERS[i] + zero);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            offsets[i] = kept(OPERANDS[0][i] + zero);
            start[i] = T::SCALE_IN_SUMS ? int(kept(OPERANDS[1][i] + zero)) : 0;
            scale_start[i] = T::SCALE_IN_SUMS ? int(kept(OPERANDS[2][i] + zero)) : 0;
        }
        if constexpr (T::SCALE_IN_SUMS) {
            // columns 2 t and 2 t + 1 are for what lane t has
            const int own = (lane >> 2) - 2 * (lane & 3);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                scale_factors[i] = kept(own == 0 ? T::SCALE_FACTORS[2 * i] : own == 1 ? T::SCALE_FACTORS[2 * i + 1] : 0u);
                scale_halves[i] = kept(own == i ? SCALE_HALVES : 0u);
                magic_halves[i] = kept(own == i ? MAGIC_HALVES : 0u);
            }
        }
    }
};

// The scales of both rows of a lane in 16 and of both runs, and what the float of a sum is too large by: value 2 i + run of
// the results is that of row i.
template <class T>
IKQ_DEV void scales_of(const typename T::Packed (&first)[2], const typename T::Packed (&second)[2], const KeptConstants<T> &constants,
                       float (&scale)[4], float (&minus_magic)[4]) {
    uint32_t halves[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        // the four words of a row are an operand as they were loaded: the first and the third as those of row g, in column
        // 2 t, and the others as those of row g + 8, in column 2 t + 1
        uint32_t words[4];
        words_of(i & 1 ? second[i >> 1] : first[i >> 1], words);
        int sums[4];
        mma_s8_k32(sums, words, constants.scale_factors, constants.scale_start);
        halves[i] = uint32_t(sums[0] ^ sums[3]) & (0xffff0000u | T::SCALE_BITS);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) scale[i] = minus_magic[i] = 0.0f;
    mma_f16_k16(scale, halves, constants.scale_halves);
    mma_f16_k16(minus_magic, halves, constants.magic_halves);
}

// Adds the products of a unit, whose activations are stored.
template <class T>
IKQ_DEV void add_unit(const UnitTogether<T> &unit, const Places &places, unsigned turn, const KeptConstants<T> &constants,
                      int t, float (&sum)[4][2]) {
    // STATE_OFFSET times the sum of activations, with which all products begin
    int start[4];
    const uint32_t codes[2] = {unit.codes.x, unit.codes.y};
    mma_s8_k32(start, constants.offsets, codes, constants.start);
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
            places.load(turn, (s * T::VALUES + k) / 4, x);
#pragma unroll
            for (int half = 0; half < 4; half += 2)
#pragma unroll
                for (int tile = 0; tile < 2; tile++)
#pragma unroll
                    for (int run = 0; run < 2; run++) {
                        uint32_t a[4];
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            const int v = k + half + (i >> 1);
                            a[i] = state(seed[2 * tile + (i & 1)][run], v + 1, constants.powers[v]);
                        }
                        mma_s8_k32(dot[tile][run], a, x + half, dot[tile][run]);
                    }
        }
    }
#pragma unroll
    for (int tile = 0; tile < 2; tile++) {
        float scale[4], minus_magic[4];
        if constexpr (T::SCALE_IN_SUMS)
            scales_of<T>(unit.weights[2 * tile], unit.weights[2 * tile + 1], constants, scale, minus_magic);
#pragma unroll
        for (int run = 0; run < 2; run++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int row = 2 * tile + i, product = dot[tile][run][2 * i + run];
                if constexpr (T::SCALE_IN_SUMS) {
                    const float scaled = fmaf(__int_as_float(product), scale[2 * i + run], minus_magic[2 * i + run]);
                    sum[row][run] = fmaf(unit.scales[run], scaled, sum[row][run]);
                } else {
                    sum[row][run] = with_run(sum[row][run], T::scaled(unit.weights[row][run], t + 4 * run) * product, unit.scales[run]);
                }
            }
    }
}

// Computes the sums of a warp, of four that do the same: of 32 rows, of which `count` are there, and column 0.
template <class T> IKQ_DEV void add_together(const uint8_t *rows, int count, const Columns &x, int warp, Together &shared) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    NextUnit<T> next;
#pragma unroll
    for (int r = 0; r < 4; r++) {
        const int row = 8 * r + g;
        next.rows[r] = fields_of<T>(rows + (row < count ? row : count - 1) * row_bytes<T>(x.n), x.n, warp);
        T::of_lanes(next.rows[r], t);
    }
    next.codes = static_cast<const int8_t *>(x.x) + 256 * warp + 32 * run_of_column(g) + 8 * t;
    next.ds = x.ds + 8 * warp + t;
    const shared_t columns = shared_address(shared.columns[warp]);
    for (unsigned turn = 0; turn < 2; turn++)
        if (lane < int(RUN_BYTES / 16)) store_shared_16(columns + UNIT_BYTES * turn + ZEROS + 16 * lane, {0, 0, 0, 0});
    const Places places(columns, lane);
    const KeptConstants<T> constants(lane);
    float sum[4][2] = {};
    // two by turns, so that a unit stays in the registers that it was loaded into, while another one is multiplied
    UnitTogether<T> even = {}, odd = {};
    const auto multiply = [&](unsigned turn, const UnitTogether<T> &unit) {
        places.store(turn, unit.codes);
        // activations of this turn are there now, and nobody reads those of the other one any more
        __syncwarp();
        add_unit(unit, places, turn, constants, t, sum);
    };
    // units of this warp; as one lane tells it to all, the compiler knows that they stay together
    int left = __shfl_sync(ALL_LANES, (x.n / 256 + WARPS_TOGETHER - 1 - warp) / WARPS_TOGETHER, 0);
    if (left > 0) {
        next.load(even, 0);
        for (;; left -= 2) {
            if (left > 1) next.load(odd, WARPS_TOGETHER);
            multiply(0, even);
            if (left < 2) break;
            next.skip(2 * WARPS_TOGETHER);
            if (left > 2) next.load(even, 0);
            multiply(1, odd);
            if (left < 3) break;
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
    return scaled_by_row<T>(T::SCALE_IN_SUMS ? sum * OF_HALVES : sum, row, n);
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
