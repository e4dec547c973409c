// MXFP4 and NVFP4. Codes are twice the E2M1 values, so that they are integers; the scales are halved in return.
#pragma once
#include "types/bits.cuh"
#include "types/form.cuh"

// 0 1 2 3, 4 6 8 12, and the same negated (code 8 is 0, too)
IKQ_OPAQUE uint32_t E2M1[4] = {0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu};
IKQ_DEV Table16 e2m1() { return {E2M1[0], E2M1[1], E2M1[2], E2M1[3]}; }

struct mxfp4 : Neighbours<32> {
    static constexpr int BLOCK = 32;
    using Form = Planes<Seg<1, 16, Order::NIBBLES>, Seg<0, 1>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint4 w = load_16(unit.field<0>(l));
#pragma unroll
        for (int i = 0; i < 4; i++) look_up_in_order(word(w, i), e2m1(), f.code[i], f.code[4 + i]);
        // 2^(e - 128); for e of 0 and 1 it is subnormal
        const uint32_t e = load_u8(unit.field<1>(l));
        f.scale[0] = __int_as_float(int(e < 2 ? 0x00200000u << e : (e - 1) << 23));
        return f;
    }
};

// Half of each of two UE4M3 scales. The byte 0x7f gives 0; in all others bit 7 is ignored. The bits of the exponent and
// the mantissa are those of a half that is 256 times smaller.
IKQ_DEV void half_ue4m3(uint32_t bytes, float &first, float &second) {
    const uint32_t apart = permute(bytes << 7, bytes << 7, 0x2110u), halves = apart & 0x3f803f80u;
    first = (apart & 0x7f80u) == 0x3f80u ? 0.0f : 128.0f * h2f(uint16_t(halves));
    second = (apart & 0x7f800000u) == 0x3f800000u ? 0.0f : 128.0f * h2f(uint16_t(halves >> 16));
}

struct nvfp4 : Neighbours<16> {
    static constexpr int BLOCK = 64;
    using Form = Planes<Seg<4, 32, Order::NIBBLES>, Seg<0, 4>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const int block = l >> 1;
        const uint4 w = load_16(unit.field<0>(block) + 16 * (l & 1));
        const uint32_t scales = load_u32(unit.field<1>(block)) >> (16 * (l & 1));
#pragma unroll
        for (int r = 0; r < 2; r++) {
#pragma unroll
            for (int i = 0; i < 2; i++)
                look_up_in_order(word(w, 2 * r + i), e2m1(), f.code[4 * r + i], f.code[4 * r + 2 + i]);
        }
        half_ue4m3(scales, f.scale[0], f.scale[1]);
        return f;
    }
};
