"""A `ModelSpec` run in numpy: the plain reading of what spec.py says, with a cache.

Slow, short and independent of the engine. Arithmetic is float64 unless
told otherwise, so that what is left against an oracle is the oracle's own rounding.
"""

import numpy as np

from ikq.models.spec import DeltaNet, DenseFfn, Gqa, Mla, Moe

# what engines add nothing to but never divide by less than
SMALLEST_SUM = 2.0**-14


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def swiglu_oai(gate, up):
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    return gate * sigmoid(1.702 * gate) * (up + 1)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def activate(kind, gate, up, limit=None):
    if limit is not None:
        return np.minimum(silu(gate), limit) * np.clip(up, -limit, limit)
    if kind == "swiglu_oai":
        return swiglu_oai(gate, up)
    return (silu if kind == "silu" else gelu_tanh)(gate) * up


class NumpyModel:
    """Runs `spec` on the tensors of `reader`.

    After `logits`, `hidden` has the embedding, each layer's output and the final norm, and `experts` the chosen
    experts of each mixture (tokens x used, best first).
    """

    def __init__(self, reader, spec, dtype=np.float64):
        self.tensors, self.spec, self.dtype = reader.tensors, spec, dtype
        self.decoded = {}
        self.forget()

    def tensor(self, name):
        if name not in self.decoded:
            self.decoded[name] = self.tensors[name].dequantize().astype(self.dtype)
        return self.decoded[name]

    def vector(self, name):
        return self.tensor(name).ravel()

    def stream_norm(self, x, name):
        """A norm of the residual stream."""
        return self.norm(x - x.mean(-1, keepdims=True) if self.spec.norm_kind == "layer" else x, name)

    def norm(self, x, name):
        w = 1 if name is None else self.vector(name)
        return w * x / np.sqrt((x * x).mean(-1, keepdims=True) + self.spec.norm_eps)

    def linear(self, linear, x, expert=None):
        """`x` times the matrix, or one expert's."""
        if isinstance(linear.weight, tuple):
            w = self.tensor(linear.weight[expert])
        else:
            w = self.tensor(linear.weight)
            # files leave out axes of one
            w = w.reshape(-1, x.shape[-1]) if expert is None else w.reshape(-1, *w.shape[-2:])[expert]
        rows = slice(linear.first_row, None if linear.n_rows is None else linear.first_row + linear.n_rows)
        y = x @ w[rows].T
        if linear.scale is not None:
            y = y * self.vector(linear.scale)[expert or 0]
        if linear.bias is not None:
            y = y + self.vector(linear.bias).reshape(-1, len(w))[expert or 0][rows]
        return y

    def forget(self):
        """Empties the cache: keys before rotation, values, recurrent states, one entry per layer."""
        self.past = [None] * len(self.spec.layers)

    def shift(self, n_keep, n_discard):
        """Forgets positions; those behind them move down."""
        self.past = [tuple(np.delete(t, range(n_keep, n_keep + n_discard), 0) for t in p) for p in self.past]

    def logits(self, tokens, hidden=None):
        """Logits after every token, from an empty cache."""
        self.forget()
        return self.eval(tokens, hidden)

    def eval(self, tokens, hidden=None):
        """Logits after every token, behind what the cache holds; a head needs the hidden states too.

        A head that shares the model's projection gives what goes into that.
        """
        spec = self.spec
        x = self.tensor(spec.token_embd)[np.asarray(tokens)] * spec.embd_scale
        per_layer = None if spec.per_layer is None else self.per_layer(spec.per_layer, x, tokens)
        if spec.nextn is not None:
            both = [self.norm(x, spec.nextn.enorm), self.norm(hidden, spec.nextn.hnorm)]
            x = self.linear(spec.nextn.eh_proj, np.concatenate(both, -1))
        self.hidden, self.experts = [x], []
        for i, layer in enumerate(spec.layers):
            attention = {Gqa: self.gqa, Mla: self.mla, DeltaNet: self.delta_net}[type(layer.attention)]
            before = x
            y, self.past[i] = attention(
                layer.attention, self.stream_norm(x, layer.attention_norm), self.past[i]
            )
            y = y if layer.post_attention_norm is None else self.norm(y, layer.post_attention_norm)
            x = x + layer.attention_factor * y
            y = self.ffn(layer.ffn, self.stream_norm(before if layer.parallel else x, layer.ffn_norm), x)
            y = y if layer.post_ffn_norm is None else self.norm(y, layer.post_ffn_norm)
            x = x + layer.ffn_factor * y
            if layer.embedding is not None:
                e = layer.embedding
                y = self.linear(e.proj, gelu_tanh(self.linear(e.gate, x)) * per_layer[:, i])
                x = x + self.norm(y, e.norm)
            if layer.scale is not None:
                x = x * self.vector(layer.scale)
            self.hidden.append(x)
        self.hidden.append(self.stream_norm(x, spec.output_norm))
        return self.hidden[-1] if spec.output is None else self.head(self.hidden[-1])

    def head(self, hidden):
        """Logits from what the last norm gives."""
        logits = self.linear(self.spec.output, hidden) * self.spec.logit_scale
        cap = self.spec.final_softcap
        return logits if cap is None else cap * np.tanh(logits / cap)

    def rotate(self, rope, x, first=0):
        """`x` of tokens x heads x elements, at positions `first` and on."""
        n = rope.n_rot
        i = np.arange(n // 2)
        freq = rope.base ** (-2 * i / n) / rope.linear
        if rope.factors is not None:
            freq = freq / self.vector(rope.factors)[: n // 2]
        magnitude = 1
        if rope.yarn is not None:
            y = rope.yarn
            magnitude = y.magnitude

            def bound(beta):
                return n * np.log(y.n_ctx_orig / (2 * np.pi * beta)) / (2 * np.log(rope.base))

            low, high = bound(y.beta_fast), bound(y.beta_slow)
            if y.truncate:
                low, high = np.floor(low), np.ceil(high)
            low, high = max(0, low), min(n - 1, high)
            kept = 1 - np.clip((i - low) / max(0.001, high - low), 0, 1)
            freq = freq * kept + freq / y.factor * (1 - kept)
        angle = ((first + np.arange(len(x)))[:, None] * freq)[:, None]
        cos, sin = magnitude * np.cos(angle), magnitude * np.sin(angle)
        first, second = (i, i + n // 2) if rope.pairing == "neox" else (2 * i, 2 * i + 1)
        out = x.copy()
        out[..., first] = x[..., first] * cos - x[..., second] * sin
        out[..., second] = x[..., first] * sin + x[..., second] * cos
        return out

    def attend(self, q, k, v, scale, window=None, softcap=None, sinks=None):
        """Tokens x heads x elements; queries are the last tokens, key/value heads are shared where fewer."""
        k, v = (np.repeat(t, q.shape[1] // t.shape[1], axis=1) for t in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) * scale
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        distance = np.arange(len(k) - len(q), len(k))[:, None] - np.arange(len(k))
        seen = distance >= 0
        if window is not None:
            seen &= distance < window
        scores = np.where(seen, scores, -np.inf)
        if sinks is not None:
            column = np.broadcast_to(self.vector(sinks)[:, None, None], (*scores.shape[:2], 1))
            scores = np.concatenate([scores, column], -1)
        p = softmax(scores)[..., : len(k)]
        return np.einsum("hij,jhd->ihd", p, v)

    def norm_if(self, x, weight):
        return x if weight is None else self.norm(x, weight)

    def norm_of_rows(self, x, weight):
        """All heads normed together."""
        return self.norm(x.reshape(len(x), -1), weight).reshape(x.shape)

    def gqa(self, a, h, past):
        n = len(h)
        q = self.linear(a.q, h).reshape(n, a.n_head, -1)
        q, gate = q[..., : a.head_dim], q[..., a.head_dim :]
        if a.shares is not None:
            # that layer has run, and its cache has these tokens too
            k, v = self.past[a.shares]
        else:
            k = self.linear(a.k, h).reshape(n, a.n_head_kv, a.head_dim)
            v = self.linear(a.v, h).reshape(n, a.n_head_kv, a.head_dim_v)
        norms = {"row": self.norm_of_rows, "head": self.norm_if, "unit": self.norm}.get(a.qk_norm)
        if norms is not None:
            q = norms(q, a.q_norm)
            k = k if a.shares is not None else norms(k, a.k_norm)
        if a.v_norm:
            v = self.norm(v, None)
        if past is not None and a.shares is None:
            k, v = np.concatenate([past[0], k]), np.concatenate([past[1], v])
        past = k, v
        if a.rope is not None:
            q, k = self.rotate(a.rope, q, len(k) - n), self.rotate(a.rope, k)
        if a.qk_norm == "rotated_head":
            q, k = self.norm(q, a.q_norm), self.norm(k, a.k_norm)
        q = self.tempered(a.temperature, q, len(k) - n)
        out = self.attend(q, k, v, a.scale, a.window, a.softcap, a.sinks)
        if a.output_gate:
            out = out * sigmoid(gate)
        if a.gate is not None:
            gate = self.linear(a.gate, h)
            gate = sigmoid(gate) if a.gate_func == "sigmoid" else np.logaddexp(0, gate)
            out = out.reshape(*gate.shape, -1) * gate[..., None]
        return self.linear(a.output, out.reshape(n, -1)), past

    def tempered(self, temperature, q, first):
        """Queries of positions `first` and on, times what their temperature says."""
        if temperature is None:
            return q
        steps = (first + np.arange(len(q)) + temperature.offset) // temperature.length
        return q * (1 + temperature.scale * np.log(1 + steps))[:, None, None]

    def mla(self, a, h, past):
        n = len(h)
        if a.q_a is not None:
            q = self.linear(a.q, self.norm(self.linear(a.q_a, h), a.q_a_norm))
        else:
            q = self.linear(a.q, h)
        q = q.reshape(n, a.n_head, -1)
        t = self.linear(a.kv_a, h)
        c, shared = self.norm(t[:, : a.kv_rank], a.kv_a_norm), t[:, a.kv_rank :]
        if past is not None:
            c, shared = np.concatenate([past[0], c]), np.concatenate([past[1], shared])
        past, n_all = (c, shared), len(c)
        q = np.concatenate([q[..., : a.n_nope], self.rotate(a.rope, q[..., a.n_nope :], n_all - n)], -1)
        if a.kv_b is not None:
            kv = (c @ self.tensor(a.kv_b).T).reshape(n_all, a.n_head, -1)
            k, v = kv[..., : a.n_nope], kv[..., a.n_nope :]
        else:
            k = np.einsum("tc,hcn->thn", c, self.tensor(a.k_b).reshape(a.n_head, a.kv_rank, a.n_nope))
            v = np.einsum("tc,hvc->thv", c, self.tensor(a.v_b).reshape(a.n_head, a.head_dim_v, a.kv_rank))
        k = np.concatenate([k, np.repeat(self.rotate(a.rope, shared[:, None]), a.n_head, axis=1)], -1)
        q = self.tempered(a.temperature, q, n_all - n)
        return self.linear(a.output, self.attend(q, k, v, a.scale).reshape(n, -1)), past

    def delta_net(self, a, h, past):
        n, r = len(h), a.n_head_v // a.n_head_k
        n_keys, n_values = a.n_head_k * a.head_dim_k, a.n_head_v * a.head_dim_v
        u = self.linear(a.qkv, h)
        if a.mixed:
            per_head = u.reshape(n, a.n_head_k, -1)
            cuts = np.cumsum([a.head_dim_k, a.head_dim_k, r * a.head_dim_v])
            *parts, z = np.split(per_head, cuts, axis=-1)
            u, z = np.concatenate([p.reshape(n, -1) for p in parts], -1), z.reshape(n, -1)
        else:
            z = self.linear(a.z, h)
        if a.ba_grouped:
            ba = self.linear(a.beta, h).reshape(n, a.n_head_k, 2 * r)
            beta, alpha = ba[..., :r].reshape(n, -1), ba[..., r:].reshape(n, -1)
        else:
            beta, alpha = self.linear(a.beta, h), self.linear(a.alpha, h)
        beta = sigmoid(beta)
        decay = np.exp(self.vector(a.a) * np.logaddexp(0, alpha + self.vector(a.dt)))
        taps = self.tensor(a.conv).reshape(-1, a.conv_kernel)
        if past is None:
            inputs = np.zeros((a.conv_kernel - 1, u.shape[1]), self.dtype)
            state = np.zeros((a.n_head_v, a.head_dim_k, a.head_dim_v), self.dtype)
        else:
            inputs, state = past
        padded = np.concatenate([inputs, u])
        m = silu(sum(padded[s : s + n] * taps[:, s] for s in range(a.conv_kernel)))
        q, k = (x.reshape(n, a.n_head_k, a.head_dim_k) for x in (m[:, :n_keys], m[:, n_keys : 2 * n_keys]))
        v = m[:, 2 * n_keys :].reshape(n, a.n_head_v, a.head_dim_v)
        q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + self.spec.norm_eps) for x in (q, k))
        j = np.arange(a.n_head_v)
        key_head = j // r if a.value_order == "grouped" else j % a.n_head_k
        q, k = q[:, key_head] / np.sqrt(a.head_dim_k), k[:, key_head]
        out = np.empty((n, a.n_head_v, a.head_dim_v), self.dtype)
        for t in range(n):
            state = state * decay[t][:, None, None]
            delta = beta[t][:, None] * (v[t] - np.einsum("hkv,hk->hv", state, k[t]))
            state = state + k[t][:, :, None] * delta[:, None, :]
            out[t] = np.einsum("hkv,hk->hv", state, q[t])
        y = self.norm(out, a.norm).reshape(n, n_values) * silu(z)
        return self.linear(a.output, y), (padded[n:], state)

    def per_layer(self, p, x, tokens):
        """Embeddings of layers: tokens x layers x elements."""
        own = self.tensor(p.embd)[np.asarray(tokens)] * p.embd_scale
        projected = (self.linear(p.proj, x) * p.proj_scale).reshape(len(x), -1, p.n)
        return p.scale * (own.reshape(projected.shape) + self.norm(projected, p.norm))

    def ffn(self, f, h, x):
        """What the FFN gives for `h`, which is `x` normed."""
        if isinstance(f, DenseFfn):
            return self.dense(f, h)
        assert isinstance(f, Moe)
        read = h if f.norms is None else self.norm(x, f.norms.router) * f.norms.router_scale
        chosen, weights = self.route(f.routing, read)
        self.experts.append(chosen)
        out = np.zeros_like(h)
        for expert in range(f.routing.n_expert):
            tokens, slots = np.nonzero(chosen == expert)
            if len(tokens):
                some = h[tokens]
                weight = weights[tokens, slots][:, None]
                if f.weighs_input:
                    some, weight = weight * some, 1.0
                gate, up = self.linear(f.gate, some, expert), self.linear(f.up, some, expert)
                inner = activate(f.activation, gate, up, f.limit)
                out[tokens] += weight * self.linear(f.down, inner, expert)
        if f.norms is not None:
            shared = self.dense(f.shared, self.norm(x, f.norms.shared))
            return self.norm(out, f.norms.experts_output) + self.norm(shared, f.norms.shared_output)
        return out if f.shared is None else out + self.dense(f.shared, h)

    def dense(self, f, h):
        inner = activate(f.activation, self.linear(f.gate, h), self.linear(f.up, h), f.limit)
        y = self.linear(f.down, inner)
        return y if f.input_gate is None else y * sigmoid(h @ self.vector(f.input_gate))[:, None]

    def route(self, r, h):
        """Chosen experts, best first, and their weights."""
        logits = self.linear(r.router, h)
        p = {"softmax": softmax, "sigmoid": sigmoid, "softmax_chosen": lambda x: x}[r.func](logits)
        c = p if r.selection_bias is None else p + self.vector(r.selection_bias)
        if r.n_group > 1:
            groups = c.reshape(len(h), r.n_group, -1)
            score = np.sort(groups, -1)[..., -2:].sum(-1)
            best = np.argsort(-score, -1, kind="stable")[:, : r.n_group_used]
            kept = np.zeros(score.shape, bool)
            np.put_along_axis(kept, best, True, -1)
            c = np.where(kept[..., None], groups, -np.inf).reshape(c.shape)
        chosen = np.argsort(-c, -1, kind="stable")[:, : r.n_used]
        w = np.take_along_axis(p, chosen, -1)
        if r.func == "softmax_chosen":
            w = softmax(w)
        if r.normalize:
            w = w / np.maximum(w.sum(-1, keepdims=True), SMALLEST_SUM)
        return chosen, w * r.scale
