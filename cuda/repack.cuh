// Converts rows from the layout of the file to the device form (types/form.cuh).
#pragma once
#include "rows.cuh"
#include "types/iqks.cuh"
#include "types/trellis.cuh"

// Where byte `at` of a device row is in the file's row, or -1 for padding. The recursion goes through the planes, while
// `block_bytes` and `header_bytes` stay those of the whole type. In the file, the blocks follow the row header.
template <class P> struct Source;
template <> struct Source<Planes<>> {
    IKQ_MEMBER int64_t of(int64_t, int, int, int) { return -1; }
    IKQ_MEMBER Order order(int64_t, int) { return Order::FILE; }
};
template <class P, class... Rest> struct Source<Planes<P, Rest...>> {
    IKQ_MEMBER int64_t of(int64_t at, int n_blocks, int block_bytes, int header_bytes) {
        constexpr int size = P::size, source = P::source;
        const int64_t plane = P::head ? int64_t(size) : int64_t(size) * n_blocks;
        if (at >= plane) return Source<Planes<Rest...>>::of(at - plane, n_blocks, block_bytes, header_bytes);
        return P::head ? at : header_bytes + at / size * block_bytes + source + at % size;
    }
    // the order of the plane in which byte `at` is
    IKQ_MEMBER Order order(int64_t at, int n_blocks) {
        const int64_t plane = P::head ? int64_t(P::size) : int64_t(P::size) * n_blocks;
        return at < plane ? P::order : Source<Planes<Rest...>>::order(at - plane, n_blocks);
    }
};

// Exchanges the second and the third of each four groups of `size` bits; `second` has the bits of the second ones.
IKQ_DEV uint32_t inner_exchanged(uint32_t x, uint32_t second, int size) {
    const uint32_t difference = (x ^ x >> size) & second;
    return x ^ difference ^ difference << size;
}
IKQ_DEV uint32_t nibbles_in_order(uint32_t x) {
    return inner_exchanged(inner_exchanged(x, 0x00f000f0u, 4), 0x0000ff00u, 8);
}

IKQ_DEV uint32_t nibbles_of_pairs(uint32_t x) { return (x >> 1 & 0x77777777u) | (~x << 3 & 0x88888888u); }

// Code j (0 to 15) of run r of lane l of a block of IQ5_K, IQ5_KS or IQ6_K, which has nibbles and then upper bits.
template <class T> IKQ_DEV uint32_t code_of_file(const uint8_t *block, int l, int r, int j) {
    constexpr int low_at = T::Form::First::source, high_at = T::Form::Others::First::source;
    const uint32_t low = load_u8(block + low_at + 16 * l + j) >> (4 * r) & 15u;
    const uint8_t *high = block + high_at + 16 * (l & 1) + j;
    if constexpr (T::RECODED_BYTES == 160) return low | (load_u8(high) >> (2 * (l >> 1) + r) & 1u) << 4;
    return low | (load_u8(high + 32 * (l >> 2)) >> (4 * (l >> 1 & 1) + 2 * r) & 3u) << 4;
}

// Word w of the codes of a lane in device form, of which the struct of the type says what it has. Words 0 to 3 are in the
// first plane, others in the second.
template <class T> struct Recoded;
template <class T> struct RecodedFive {
    IKQ_MEMBER uint32_t word(const uint8_t *block, int l, int w) {
        // the lower four bits of eight codes, or bit 4 of all, of those of word v in bits v of nibbles
        uint32_t out = 0;
        for (int v = w < 4 ? w : 0; v < (w < 4 ? w + 1 : 4); v++)
#pragma unroll 1 // all at once would take too many registers
            for (int i = 0; i < 8; i++) {
                const uint32_t code = load_u8(IQ5_CODES + code_of_file<T>(block, l, i >> 2, 4 * v + (i & 3)));
                out |= w < 4 ? (code & 15u) << (4 * i) : (code >> 4) << (4 * i + v);
            }
        return out;
    }
};
template <> struct Recoded<iq5_k> : RecodedFive<iq5_k> {};
template <> struct Recoded<iq5_ks> : RecodedFive<iq5_ks> {};
template <> struct Recoded<iq6_k> {
    IKQ_MEMBER uint32_t word(const uint8_t *block, int l, int w) {
        uint32_t out = 0;
        for (int half = 0; half < 2; half++) {
            // code `half` of a pair; eight pairs are a run
            const auto pair = [&](int p) { return code_of_file<iq6_k>(block, l, p >> 3, 2 * (p & 7) + half); };
            const uint32_t low = w < 4 ? pair(12 + w) & 15u : pair(4 + 2 * w) >> 4 | pair(5 + 2 * w) >> 4 << 2;
            out |= (low | pair(w) << 4 | pair(6 + w) << 10) << (16 * half);
        }
        return out;
    }
};
template <> struct Recoded<iq4_kss> {
    IKQ_MEMBER uint32_t word(const uint8_t *block, int l, int w) {
        uint32_t x = 0;
        for (int i = 0; i < 4; i++) x |= load_u8(block + 16 * l + 4 * w + i) << (8 * i);
        const uint32_t of_scale = x & 0x00010001u;
        x ^= of_scale;
        // the Gray code is undone, and made again for nibbles in another order
        x = inner_exchanged(nibbles_of_pairs(x ^ x >> 1), 0x00f000f0u, 4);
        x ^= x >> 1 & 0x7fff7fffu;
        x ^= x >> 2 & 0x3fff3fffu;
        x ^= x >> 4 & 0x0fff0fffu;
        x ^= x >> 8 & 0x00ff00ffu;
        return x | of_scale;
    }
};
template <> struct Recoded<iq4_kt> {
    IKQ_MEMBER uint4 words(const uint8_t *block, int l) {
        // the lower byte has the scale above the highest bit of seeds; above it are the next three bits of eight seeds
        uint32_t scale = 0;
        for (int i = 0; i < 4; i++) scale |= load_u8(block + 4 * l + i) << (8 * i);
        uint32_t w[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            w[i] = i == 0 ? (scale & 1u) << 15 : 0u;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int k = 2 * i + j;
                w[i] |= (load_u8(block + 32 + 8 * l + k) |
                         (load_u8(block + 96 + 8 * (l & 3) + k) >> (4 * (l >> 2)) & 15u) << 8 | (scale >> (8 + 3 * k) & 7u) << 12)
                        << (17 * j);
            }
        }
        // From the lowest bit of the scale to the highest: sums have it as the scale has, or a bit of a word changes it, which
        // is not set before.
        const uint32_t wanted = (scale >> 1 & 127u) << iq4_kt::SCALE_SHIFT;
#pragma unroll
        for (int i = 0; i < 7; i++) {
            const uint32_t wrong = iq4_kt::scale_bits({w[0], w[1], w[2], w[3]}) ^ wanted;
            w[i < 4 ? i : i - 3] |= (wrong >> (iq4_kt::SCALE_SHIFT + i) & 1u) << (i < 4 ? 16 : 15);
        }
        return {w[0], w[1], w[2], w[3]};
    }
};

// Sixteen bytes of the planes of a row whose codes are recoded: chunk `chunk` of the row. A lane has sixteen bytes in the
// first plane, and in the second, if there is one, a whole number of words.
template <class T> IKQ_DEV void recoded(const uint8_t *blocks, int n_blocks, int64_t chunk, uint32_t (&out)[4]) {
    constexpr bool has_second = T::RECODED_BYTES > 128;
    constexpr int more = has_second ? T::RECODED_BYTES / 32 - 4 : 1; // words of a lane in the second plane
    const bool first = !has_second || chunk < 8 * int64_t(n_blocks);
    if (!first) chunk -= 8 * int64_t(n_blocks);
    const int per_block = first ? 8 : 2 * more, in_block = int(chunk % per_block);
    const uint8_t *block = blocks + chunk / per_block * T::Form::block_bytes;
    if constexpr (SAME_TYPE<T, iq4_kt>) {
        const uint4 words = Recoded<T>::words(block, in_block);
        out[0] = words.x;
        out[1] = words.y;
        out[2] = words.z;
        out[3] = words.w;
    } else {
        for (int w = 0; w < 4; w++) {
            const int k = 4 * in_block + w; // of the words of the plane in a block
            out[w] = first ? Recoded<T>::word(block, in_block, w) : Recoded<T>::word(block, k / more, 4 + k % more);
        }
    }
}

// Converts one row with all threads of a block; each thread writes sixteen bytes at a time. `skipped` is the number of
// header bytes that are missing in `row` because the header is elsewhere (I2_S).
template <class T> IKQ_DEV void repack_row(const uint8_t *row, const uint8_t *header, int skipped, uint8_t *out, int n) {
    constexpr int block = T::Form::block_bytes, header_bytes = T::Form::header_bytes;
    const int n_blocks = n / T::BLOCK;
    for (int64_t i = threadIdx.x; 16 * i < row_bytes<T>(n); i += blockDim.x) {
        uint32_t words[4];
        if constexpr (T::RECODED_BYTES != 0) {
            if (i < T::RECODED_BYTES / 16 * int64_t(n_blocks)) {
                recoded<T>(row + header_bytes, n_blocks, i, words);
                reinterpret_cast<uint4 *>(out)[i] = {words[0], words[1], words[2], words[3]};
                continue;
            }
        }
#pragma unroll
        for (int w = 0; w < 4; w++) {
            words[w] = 0;
#pragma unroll
            for (int b = 0; b < 4; b++) {
                const int64_t at = Source<typename T::Form>::of(16 * i + 4 * w + b, n_blocks, block, header_bytes);
                const uint8_t *from = at < header_bytes ? header + at : row + at - skipped;
                if (at >= 0) words[w] |= load_u8(from) << (8 * b);
            }
            const Order order = Source<typename T::Form>::order(16 * i, n_blocks);
            if (order == Order::PAIRS) words[w] = nibbles_of_pairs(words[w]);
            if (order != Order::FILE) words[w] = nibbles_in_order(words[w]);
        }
        reinterpret_cast<uint4 *>(out)[i] = {words[0], words[1], words[2], words[3]};
    }
}
