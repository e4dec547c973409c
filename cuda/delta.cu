// Gated delta-net: a recurrent layer that remembers a matrix per value head. Per token and head
//
//   S = decay S;  d = beta (v - S^T k);  S = S + k d^T;  o = S^T q
//
// with q, k, v from a convolution over time. The tokens of a chunk (delta.cuh) are computed from the matrix S at its
// beginning: with L[i, j] the logarithm of the decay from token j to token i, G_i that from the chunk's beginning,
//
//   d_i = beta_i (v_i - exp(G_i) S^T k_i) - sum over j < i of beta_i exp(L[i, j]) (k_i k_j) d_j
//   o_i = exp(G_i) S^T q_i + sum over j <= i of exp(L[i, j]) (q_i k_j) d_j
//   S   = exp(G_31) S + sum over j of exp(L[31, j]) k_j d_j^T    when the chunk is full
//
// A layer's step is these launches, in this order:
//
//   delta_inputs(u, u_stride, beta, alpha, gate_stride, conv, dt, slope, states, runs, run_of, inputs, gates, n_k, n_v,
//                dk, dv, taps, mixed, grouped, eps)
//       grid (2 n_k + n_v, columns), block 32: the convolution and its activation, queries and keys of unit length
//       u, u_stride    products: queries, keys and values, u_stride floats per column; `mixed`: see delta.cuh
//       beta, alpha    products, gate_stride floats per column; `grouped`: beta has for each key head the betas of its
//                      value heads, then their alphas, and alpha is not read
//       conv           `taps` numbers per channel
//       dt, slope      per value head: the logarithm of the decay is slope * softplus(alpha + dt)
//       runs, run_of   the runs of the step, and for each column the number of its run
//       inputs         [column][channel]: queries (times dk^-1/2), keys, values
//       gates          [column]: n_v betas between 0 and 1, then n_v logarithms of decays
//   delta_pairs(inputs, states, runs, run_of, pairs, n_k, n_v, dk, dv, taps)
//       grid (n_k, columns), block 128
//       pairs          [column][key head]: 32 products of the column's key with keys of the chunk up to its own, then 32
//                      of its query
//   delta_chunks(inputs, gates, pairs, states, runs, results, n_k, n_v, dk, dv, taps, tiled)
//       grid (n_v, ceil(dv / 32), runs), block 128
//       tiled          value head h belongs to key head h % n_k; else those of a key head are neighbours
//       results        [column][value head][dv]
//   delta_keep(u, u_stride, inputs, gates, states, runs, run_of, n_k, n_v, dk, dv, taps, mixed)
//       grid (2 n_k + n_v, columns), block 32: stores what later steps need besides matrices and values, which
//       delta_chunks has stored
//   delta_output(results, weight, z, z_stride, y, q, ds, n_k, n_v, dk, dv, mixed, eps)
//       grid (n_v, columns), block 32: the RMS norm of each head's results, times weight and the activation of gates
//       z, z_stride    gates, z_stride floats per column; `mixed`: those in the products u
//       y, q, ds       [column][value head][dv] floats and, if q is not null, their codes (dv is a multiple of 32)
#include "delta.cuh"
#include "quantized.cuh"

IKQ_DEV float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

IKQ_KERNEL(32, delta_inputs, (const float *u, int64_t u_stride, const float *beta, const float *alpha, int gate_stride,
                              const float *conv, const float *dt, const float *slope, float *states, const Run *runs,
                              const int *run_of, float *inputs, float *gates, int n_k, int n_v, int dk, int dv, int taps,
                              int mixed, int grouped, float eps)) {
    const Sizes s = {n_k, n_v, dk, dv, taps};
    const int lane = threadIdx.x, head = blockIdx.x, column = blockIdx.y;
    const Run run = runs[run_of[column]];
    const int position = run.position + column - run.column, channels = channels_of(s), rows = rows_of(s);
    const ConvHead h = conv_head(s, head, mixed);
    const float *kept = parts_of(s, states, run.state).inputs + h.channel;
    float *out = inputs + int64_t(column) * channels + h.channel;
    float squares = 0.0f;
    for (int c = lane; c < h.n; c += 32) {
        float sum = 0.0f;
        for (int tap = 0; tap < taps; tap++) {
            const int at = position - (taps - 1) + tap;
            float x = 0.0f;
            if (at >= run.position)
                x = u[(column - (taps - 1) + tap) * u_stride + h.from + c];
            else if (at >= 0)
                x = kept[int64_t(at % rows) * channels + c];
            sum += conv[int64_t(h.channel + c) * taps + tap] * x;
        }
        const float y = sum * sigmoid(sum);
        squares += y * y;
        out[c] = y;
    }
    if (head < 2 * n_k) {
        const float scale = 1.0f / sqrtf(warp_sum(squares) + eps), size = head < n_k ? 1.0f / sqrtf(float(dk)) : 1.0f;
        for (int c = lane; c < h.n; c += 32) out[c] = out[c] * scale * size;
    } else if (lane == 0) {
        const int value = head - 2 * n_k, of_key = n_v / n_k;
        const int64_t at = int64_t(column) * gate_stride;
        const int first = grouped ? value / of_key * 2 * of_key + value % of_key : value;
        const float a = (grouped ? beta[at + first + of_key] : alpha[at + first]) + dt[value];
        gates[int64_t(column) * 2 * n_v + value] = sigmoid(beta[at + first]);
        gates[int64_t(column) * 2 * n_v + n_v + value] = slope[value] * (a > 20.0f ? a : log1pf(expf(a)));
    }
}

IKQ_KERNEL(128, delta_pairs, (const float *inputs, float *states, const Run *runs, const int *run_of, float *pairs,
                              int n_k, int n_v, int dk, int dv, int taps)) {
    const Sizes s = {n_k, n_v, dk, dv, taps};
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, head = blockIdx.x, column = blockIdx.y;
    const Run run = runs[run_of[column]];
    const int64_t channels = channels_of(s);
    const int place = (run.position + column - run.column) % CHUNK;
    const float *kept = parts_of(s, states, run.state).keys + int64_t(head) * CHUNK * dk;
    const float *q = inputs + column * channels + head * dk, *k = q + n_k * dk;
    float *out = pairs + (int64_t(column) * n_k + head) * 2 * CHUNK;
    for (int j = warp; j <= place; j += 4) {
        // tokens of this step stand side by side, those before it are in the state
        const bool now = column - place + j >= run.column;
        const float *key = now ? k - (place - j) * channels : kept + j * dk;
        float of_key = 0.0f, of_query = 0.0f;
        for (int i = lane; i < dk; i += 32) {
            of_key += k[i] * key[i];
            of_query += q[i] * key[i];
        }
        of_key = warp_sum(of_key);
        of_query = warp_sum(of_query);
        if (lane == 0) {
            out[j] = of_key;
            out[CHUNK + j] = of_query;
        }
    }
}

// tokens whose products with the matrix a warp makes at a time
constexpr int TOKENS = 4;

IKQ_KERNEL(128, delta_chunks, (const float *inputs, const float *gates, const float *pairs, float *states,
                               const Run *runs, float *results, int n_k, int n_v, int dk, int dv, int taps, int tiled)) {
    // 32 columns of the matrix: one per lane; rows are shared out to warps
    IKQ_SHARED(float, of_keys, CHUNK * CHUNK);
    IKQ_SHARED(float, of_queries, CHUNK * CHUNK);
    IKQ_SHARED(float, added, CHUNK * 32);
    IKQ_SHARED(float, seen, 2 * CHUNK * 32);
    IKQ_SHARED(float, parts, 4 * TOKENS * 2 * 32);
    IKQ_SHARED(float, logs, CHUNK);
    IKQ_SHARED(float, starts, CHUNK);
    IKQ_SHARED(float, ends, CHUNK);
    const Sizes s = {n_k, n_v, dk, dv, taps};
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, head = blockIdx.x, at = 32 * blockIdx.y + lane;
    const bool in = at < dv;
    const int key_head = tiled ? head % n_k : head / (n_v / n_k);
    const int64_t channels = channels_of(s);
    const Run run = runs[blockIdx.z];
    const Parts state = parts_of(s, states, run.state);
    float *matrix = state.matrices + int64_t(head) * dk * dv + at;
    float *kept_values = state.values + int64_t(head) * CHUNK * dv + at;
    const float *kept_keys = state.keys + int64_t(key_head) * CHUNK * dk;
    for (int done = 0; done < run.n;) {
        const int position = run.position + done, first = position % CHUNK;
        const int end = run.n - done < CHUNK - first ? first + run.n - done : CHUNK;
        const bool is_new = position < CHUNK; // the matrix is zeros
        // token j of the chunk, if it belongs to this step, is column begin + j
        const int64_t begin = int64_t(run.column) + done - first;
        const float *queries = inputs + begin * channels + key_head * dk, *keys = queries + n_k * dk;
        const float *values = inputs + begin * channels + 2 * n_k * dk + head * dv + at;
        const float *gate = gates + begin * 2 * n_v + head;
        for (int j = warp; j < end; j += 4)
            added[32 * j + lane] = !in ? 0.0f : j < first ? kept_values[j * dv] : values[j * channels];
        if (int(threadIdx.x) < end)
            logs[threadIdx.x] = int(threadIdx.x) < first ? state.decays[head * CHUNK + threadIdx.x]
                                                         : gate[int64_t(threadIdx.x) * 2 * n_v + n_v];
        __syncthreads();

        // factors of earlier tokens' rows: lane j has that of token j
        for (int i = first + warp; i < end; i += 4) {
            float log = 0.0f;
            for (int m = i; m > lane; m--) log += logs[m];
            const float decay = expf(log);
            const float *pair = pairs + ((begin + i) * n_k + key_head) * 2 * CHUNK;
            if (lane < i) of_keys[CHUNK * i + lane] = -gate[int64_t(i) * 2 * n_v] * decay * pair[lane];
            if (lane <= i) of_queries[CHUNK * i + lane] = decay * pair[CHUNK + lane];
            if (lane == 0) starts[i] = expf(log + logs[0]);
            if (i == CHUNK - 1) ends[lane] = decay;
        }

        // products of keys and queries with the matrix, behind whose barriers the factors are read
        for (int token = first; token < end; token += TOKENS) {
            const int count = end - token < TOKENS ? end - token : TOKENS;
            float of_key[TOKENS] = {}, of_query[TOKENS] = {};
            if (!is_new && in)
                for (int row = warp; row < dk; row += 4) {
                    const float x = matrix[int64_t(row) * dv];
#pragma unroll
                    for (int t = 0; t < TOKENS; t++)
                        if (t < count) {
                            of_key[t] += keys[(token + t) * channels + row] * x;
                            of_query[t] += queries[(token + t) * channels + row] * x;
                        }
                }
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
                parts[(2 * (TOKENS * warp + t)) * 32 + lane] = of_key[t];
                parts[(2 * (TOKENS * warp + t) + 1) * 32 + lane] = of_query[t];
            }
            __syncthreads();
            // each warp sums the parts of one token
            if (warp < count)
                for (int i = 0; i < 2; i++) {
                    float sum = 0.0f;
                    for (int w = 0; w < 4; w++) sum += parts[(2 * (TOKENS * w + warp) + i) * 32 + lane];
                    seen[(2 * (token + warp) + i) * 32 + lane] = starts[token + warp] * sum;
                }
            __syncthreads();
        }

        // what each token adds along its key needs what those before it add; a lane has its column of all
        if (warp == 0)
            for (int i = first; i < end; i++) {
                float d = gate[int64_t(i) * 2 * n_v] * (added[32 * i + lane] - seen[2 * i * 32 + lane]);
                for (int j = 0; j < i; j++) d += of_keys[CHUNK * i + j] * added[32 * j + lane];
                added[32 * i + lane] = d;
            }
        __syncthreads();
        for (int i = first + warp; i < end; i += 4) {
            float o = seen[(2 * i + 1) * 32 + lane];
            for (int j = 0; j <= i; j++) o += of_queries[CHUNK * i + j] * added[32 * j + lane];
            if (in) results[((begin + i) * n_v + head) * dv + at] = o;
            if (in && end < CHUNK) kept_values[i * dv] = added[32 * i + lane];
        }
        if (end == CHUNK && in)
            for (int row = warp; row < dk; row += 4) {
                float x = is_new ? 0.0f : matrix[int64_t(row) * dv] * starts[CHUNK - 1];
                for (int j = 0; j < CHUNK; j++) {
                    const float key = j < first ? kept_keys[j * dk + row] : keys[j * channels + row];
                    x += ends[j] * key * added[32 * j + lane];
                }
                matrix[int64_t(row) * dv] = x;
            }
        __syncthreads();
        done += end - first;
    }
}

IKQ_KERNEL(32, delta_keep, (const float *u, int64_t u_stride, const float *inputs, const float *gates, float *states,
                            const Run *runs, const int *run_of, int n_k, int n_v, int dk, int dv, int taps, int mixed)) {
    const Sizes s = {n_k, n_v, dk, dv, taps};
    const int lane = threadIdx.x, head = blockIdx.x, column = blockIdx.y;
    const Run run = runs[run_of[column]];
    const int position = run.position + column - run.column, last = run.position + run.n, rows = rows_of(s);
    const int64_t channels = channels_of(s);
    const Parts state = parts_of(s, states, run.state);
    const ConvHead h = conv_head(s, head, mixed);
    // earlier ones have the rows of later ones
    if (position >= last - rows)
        for (int c = lane; c < h.n; c += 32)
            state.inputs[position % rows * channels + h.channel + c] = u[column * u_stride + h.from + c];
    if (position / CHUNK < last / CHUNK) return;
    const int place = position % CHUNK;
    if (head >= 2 * n_k) {
        const int value = head - 2 * n_k;
        if (lane == 0) state.decays[value * CHUNK + place] = gates[(int64_t(column) * 2 + 1) * n_v + value];
    } else if (head >= n_k) {
        for (int c = lane; c < dk; c += 32)
            state.keys[(int64_t(head - n_k) * CHUNK + place) * dk + c] = inputs[column * channels + head * dk + c];
    }
}

IKQ_KERNEL(32, delta_output, (const float *results, const float *weight, const float *z, int64_t z_stride, float *y,
                              int8_t *q, float2 *ds, int n_k, int n_v, int dk, int dv, int mixed, float eps)) {
    const int lane = threadIdx.x, head = blockIdx.x, of_key = n_v / n_k;
    const int64_t at = (int64_t(blockIdx.y) * n_v + head) * dv;
    results += at;
    // in mixed products the gates of a key head's values stand behind them
    const int group = 2 * (dk + of_key * dv);
    z += blockIdx.y * z_stride + (mixed ? head / of_key * group + 2 * dk + (of_key + head % of_key) * dv : head * dv);
    float squares = 0.0f;
    for (int i = lane; i < dv; i += 32) squares += results[i] * results[i];
    const float scale = 1.0f / sqrtf(warp_sum(squares) / float(dv) + eps);
    for (int i = lane; i < dv; i += 32) {
        const float x = results[i] * scale * weight[i] * (z[i] * sigmoid(z[i]));
        y[at + i] = x;
        // then dv is a multiple of 32, so all lanes take part
        if (q) quantize_32(x, q + at + i, ds + ((at + i) >> 5));
    }
}
