// MXFP4 and NVFP4. Codes are twice the E2M1 values, so that they are integers; the scales are halved in return.
#pragma once
#include "types/bits.cuh"
#include "types/form.cuh"

// 0 1 2 3, 4 6 8 12, and the same negated (code 8 is 0, too)
IKQ_DEV Table16 e2m1() { return {0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu}; }

struct mxfp4 : Neighbours<32> {
    static constexpr int BLOCK = 32;
    using Form = Planes<Seg<1, 16>, Seg<0, 1>>;
    IKQ_MEMBER Result decode(const uint8_t *row, int nb, int u, int l) {
        Result f;
        const uint4 w = load_16(Form::field<0>(row, nb, 8 * u + l));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t low, high;
            look_up(word(w, i), e2m1(), low, high);
            f.code[i] = int(low);
            f.code[4 + i] = int(high);
        }
        // 2^(e - 128); for e of 0 and 1 it is subnormal
        const uint32_t e = load_u8(Form::field<1>(row, nb, 8 * u + l));
        f.scale[0] = __int_as_float(int(e < 2 ? 0x00200000u << e : (e - 1) << 23));
        return f;
    }
};

// Half of a UE4M3 scale. The byte 0x7f gives 0; in all others bit 7 is ignored.
IKQ_DEV float half_ue4m3(uint32_t byte) {
    const uint32_t exponent = byte >> 3 & 15u, mantissa = byte & 7u;
    if (byte == 0x7f) return 0.0f;
    return exponent ? __int_as_float(int((exponent + 119) << 23 | mantissa << 20)) : float(int(mantissa)) * 0x1p-10f;
}

struct nvfp4 : Neighbours<16> {
    static constexpr int BLOCK = 64;
    using Form = Planes<Seg<4, 32>, Seg<0, 4>>;
    IKQ_MEMBER Result decode(const uint8_t *row, int nb, int u, int l) {
        Result f;
        const int block = 4 * u + (l >> 1);
        const uint4 w = load_16(Form::field<0>(row, nb, block) + 16 * (l & 1));
        const uint32_t scales = load_u32(Form::field<1>(row, nb, block)) >> (16 * (l & 1));
#pragma unroll
        for (int r = 0; r < 2; r++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t low, high;
                look_up(word(w, 2 * r + i), e2m1(), low, high);
                f.code[4 * r + i] = int(low);
                f.code[4 * r + 2 + i] = int(high);
            }
            f.scale[r] = half_ue4m3(scales >> (8 * r) & 255u);
        }
        return f;
    }
};
