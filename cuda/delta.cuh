// Sizes of a gated delta-net layer, and what it remembers of a sequence.
//
// Tokens are grouped in chunks that begin at positions which are multiples of 32. The matrices of a state are those at
// the beginning of the chunk; what the chunk's tokens add is kept beside them, a row per token, until the chunk is
// full. So a token's result is made by the same operations whether it comes alone or with others, and tokens of the
// unfinished chunk can be forgotten. In the first chunk matrices are zeros and are not read, and neither are inputs of
// positions before 0, so a state of no tokens may hold anything.
//
// The floats of a state, one behind the other:
//   matrices   [value head][dk][dv]
//   values     [value head][32][dv]   what each of the chunk's tokens adds along its key
//   keys       [key head][32][dk]     the chunk's keys
//   decays     [value head][32]       logarithms of the decays of the chunk's tokens
//   inputs     [taps - 1 + 32][channels]   inputs of the convolution: that of position p is in row p % (taps - 1 + 32)
#pragma once
#include "ikq_dev.cuh"

constexpr int CHUNK = 32;

// Tokens of a sequence in a step: the column and the position of the first, their number, and the sequence's state.
struct Run {
    int column, position, n, state;
};

struct Sizes {
    // heads of keys and of values; elements of their keys and values; taps of the convolution
    int n_k, n_v, dk, dv, taps;
};

// Channels of the convolution: all queries, all keys, all values.
IKQ_DEV int channels_of(Sizes s) { return 2 * s.n_k * s.dk + s.n_v * s.dv; }
// Rows of inputs in a state.
IKQ_DEV int rows_of(Sizes s) { return s.taps - 1 + CHUNK; }

// Where the parts of a state begin.
struct Parts {
    float *matrices, *values, *keys, *decays, *inputs;
};
IKQ_DEV Parts parts_of(Sizes s, float *states, int state) {
    const int64_t matrices = int64_t(s.n_v) * s.dk * s.dv, values = int64_t(s.n_v) * CHUNK * s.dv;
    const int64_t keys = int64_t(s.n_k) * CHUNK * s.dk, decays = int64_t(s.n_v) * CHUNK;
    const int64_t all = matrices + values + keys + decays + int64_t(rows_of(s)) * channels_of(s);
    float *const at = states + state * all;
    return {at, at + matrices, at + matrices + values, at + matrices + values + keys,
            at + matrices + values + keys + decays};
}

// A head of the convolution: a query (0 to n_k - 1), a key (up to 2 n_k - 1) or a value (the others).
struct ConvHead {
    // elements; the first channel; where it begins in a column of products
    int n, channel, from;
};

// `mixed`: products have, for each key head, its query, its key, the values that belong to it, and their gates.
IKQ_DEV ConvHead conv_head(Sizes s, int head, int mixed) {
    const int of_key = s.n_v / s.n_k * s.dv, group = 2 * s.dk + 2 * of_key;
    if (head < 2 * s.n_k) {
        const int channel = head * s.dk, key = head < s.n_k ? head : head - s.n_k;
        return {s.dk, channel, mixed ? key * group + (head < s.n_k ? 0 : s.dk) : channel};
    }
    const int value = (head - 2 * s.n_k) * s.dv, channel = 2 * s.n_k * s.dk + value;
    return {s.dv, channel, mixed ? value / of_key * group + 2 * s.dk + value % of_key : channel};
}
