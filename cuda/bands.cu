// Rows as files have them from bands, in which the CPU has sixteen rows side by side (rust/ikq-formats/src/lanes.rs).
//
//   rows_of_bands(bands, rows, n_rows, n_bands, band_bytes, n_blocks, block_bytes, header_bytes, front_bytes, run)
//       grid bands of all matrices, block 256
//       bands        n_bands bands of band_bytes each for every matrix
//       rows         n_rows rows for every matrix, one behind the other
//       n_blocks, block_bytes, header_bytes    of a row: a header, then blocks
//       front_bytes  bytes of a block in front of its first word
//       run          how many blocks have their smaller pieces in front of their words; 0: in a whole row they stand
//                    behind the words
#include "ikq_dev.cuh"

constexpr int LANES = 16;

// The smaller pieces of a block are a half each of its front and its back (the bytes before the first word and behind the
// last, below 4), then the odd bytes of these. The place in their lines of byte `at` of the front, or (if front <= at) of
// the back, in lane `lane`.
IKQ_DEV int place_of_small(int front, int back, int at, int lane) {
    const bool in_front = at < front;
    const int own = in_front ? front : back, i = in_front ? at : at - front, before = in_front ? 0 : front;
    if (own >= 2 && i < 2) return LANES * (before & 2) + 2 * lane + i;
    return LANES * ((front & 2) + (back & 2) + (before & 1)) + lane;
}

IKQ_KERNEL(256, rows_of_bands, (const uint8_t *bands, uint8_t *rows, int n_rows, int n_bands, int band_bytes, int n_blocks,
                                int block_bytes, int header_bytes, int front_bytes, int run)) {
    const int matrix = int(blockIdx.x) / n_bands, first = LANES * (int(blockIdx.x) % n_bands);
    const uint8_t *band = bands + int64_t(blockIdx.x) * band_bytes;
    const int n_words = (block_bytes - front_bytes) / 4, words_end = front_bytes + 4 * n_words;
    const int back_bytes = block_bytes - words_end, small_bytes = front_bytes + back_bytes;
    const int row_bytes = header_bytes + n_blocks * block_bytes;
    const int n = n_rows - first < LANES ? n_rows - first : LANES;
    uint8_t *out = rows + (int64_t(matrix) * n_rows + first) * row_bytes;
    for (int i = threadIdx.x; i < n * row_bytes; i += blockDim.x) {
        const int lane = i / row_bytes, at = i % row_bytes;
        if (at < header_bytes) {
            const int word = at / 4, left = header_bytes - 4 * word, own = left < 4 ? left : 4;
            out[i] = band[LANES * n_blocks * block_bytes + LANES * 4 * word + lane * own + at % 4];
            continue;
        }
        const int block = (at - header_bytes) / block_bytes, in_block = (at - header_bytes) % block_bytes;
        const int begin = run ? block / run * run : 0, left = n_blocks - begin;
        const int of_run = run && run < left ? run : left; // blocks
        const int base = LANES * block_bytes * begin;
        const int words_at = base + (run ? LANES * small_bytes * of_run : 0);
        const int smalls_at = base + (run ? 0 : LANES * 4 * n_words * of_run);
        int from;
        if (in_block >= front_bytes && in_block < words_end) {
            const int word = (in_block - front_bytes) / 4;
            from = words_at + LANES * 4 * ((block - begin) * n_words + word) + 4 * lane + (in_block - front_bytes) % 4;
        } else {
            const int small = in_block < front_bytes ? in_block : in_block - 4 * n_words;
            from = smalls_at + LANES * small_bytes * (block - begin) + place_of_small(front_bytes, back_bytes, small, lane);
        }
        out[i] = band[from];
    }
}
