// The size of a row in device form, which is padded to a multiple of 16 bytes.
#pragma once
#include "types/form.cuh"

template <class T> IKQ_DEV int64_t row_bytes(int n) {
    constexpr int block = T::Form::block_bytes, header = T::Form::header_bytes;
    return (int64_t(n / T::BLOCK) * block + header + 15) & ~int64_t(15);
}
