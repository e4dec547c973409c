// F32, F16 and BF16. They have no codes; their products are computed in float.
#pragma once
#include "types/form.cuh"

struct Float : Type {
    static constexpr int BLOCK = 1;
    static constexpr bool FLOAT = true;
};

struct f32 : Float {
    using Form = Planes<Seg<0, 4>>;
    static constexpr int AT_ONCE = 4; // elements in a load of sixteen bytes
    IKQ_MEMBER float one(const uint8_t *row, int i) { return load_f32(row + 4 * i); }
    IKQ_MEMBER void some(const uint8_t *row, int i, float (&out)[4]) {
        const uint4 w = load_16(row + 4 * i);
        out[0] = __int_as_float(int(w.x));
        out[1] = __int_as_float(int(w.y));
        out[2] = __int_as_float(int(w.z));
        out[3] = __int_as_float(int(w.w));
    }
};

template <class T> struct Halves : Float {
    using Form = Planes<Seg<0, 2>>;
    static constexpr int AT_ONCE = 8;
    IKQ_MEMBER float one(const uint8_t *row, int i) { return T::value(uint16_t(load_u16(row + 2 * i))); }
    IKQ_MEMBER void some(const uint8_t *row, int i, float (&out)[8]) {
        const uint4 w = load_16(row + 2 * i);
        const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int k = 0; k < 8; k++) out[k] = T::value(uint16_t(words[k / 2] >> (16 * (k & 1))));
    }
};
struct f16 : Halves<f16> {
    IKQ_MEMBER float value(uint16_t h) { return h2f(h); }
};
struct bf16 : Halves<bf16> {
    IKQ_MEMBER float value(uint16_t h) { return bf2f(h); }
};
