//! Q4_0: an example of a small-block type.

use ikq_simd::Isa;

use crate::decode::{Decode, Scales, bytes, u16_at};

/// 32 elements: f16 d, 16 bytes of nibbles (low: first half).
pub struct Q4_0;

impl<I: Isa> Decode<I> for Q4_0 {
    const UNIT_BYTES: usize = 8 * 18;
    const BLOCK_BYTES: usize = 18;
    const SUB_BLOCK: usize = 256;
    const N_FLOAT_SCALES: usize = 8;
    const MAX_ABS_CODE: i32 = 8;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        Scales::floats(isa.f16_8(std::array::from_fn(|b| u16_at(unit, 18 * b))))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let (a, b) = (bytes(unit, 36 * j + 2), bytes(unit, 36 * j + 20));
        let q = isa.bits_4x16(isa.load_4x16([a, a, b, b]), [0, 4, 0, 4], 15);
        isa.sub(q, isa.splat(8))
    }
}
