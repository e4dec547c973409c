//! Packing sixteen blocks at once, one per lane, word by word of their layout.

use ikq_formats::Layout;
use ikq_formats::layout::Piece;
use ikq_simd::Isa;

use crate::search::tile::LANES;

/// Writes up to sixteen blocks: `numbers[i][lane]` has number `i` of block `lane` in its lowest bits; bits
/// above its width are ignored, so codes may be slots ([`ikq_simd::Lanes::slot`]). The bytes are those of
/// [`Layout::pack`].
///
/// # Panics
/// Where the layout is no plain rearrangement of bits ([`Layout::words`]).
#[inline(always)]
pub fn pack_lanes<I: Isa>(isa: I, layout: &Layout, numbers: &[[f32; LANES]], out: &mut [u8]) {
    let words = layout.words().expect("only for types whose layout has words");
    let mut word_bits = [0; LANES];
    for (k, word) in words.iter().enumerate() {
        let mut bits = isa.splat_i(word.flip as i32);
        for piece in &word.left {
            bits = isa.xor_i(bits, isa.shl_i(masked(isa, numbers, piece), piece.by));
        }
        for piece in &word.right {
            bits = isa.xor_i(bits, isa.shr_i(masked(isa, numbers, piece), piece.by));
        }
        isa.store_i(bits, &mut word_bits);
        // the last word may have fewer than four bytes
        let len = (layout.bytes - 4 * k).min(4);
        for (bits, block) in word_bits.iter().zip(out.chunks_exact_mut(layout.bytes)) {
            let place = &mut block[4 * k..][..len];
            match place.first_chunk_mut() {
                Some(place) => *place = bits.to_le_bytes(),
                None => place.copy_from_slice(&bits.to_le_bytes()[..len]),
            }
        }
    }
}

/// A number's bits that belong to a piece; all others are 0.
#[inline(always)]
fn masked<I: Isa>(isa: I, numbers: &[[f32; LANES]], piece: &Piece) -> I::I {
    let number = isa.bits_i(isa.load_f(&numbers[piece.value as usize]));
    isa.and_i(number, isa.splat_i(piece.mask as i32))
}

/// The bits of f16 numbers, as numbers for [`pack_lanes`].
#[inline(always)]
pub fn half_numbers(halves: [u16; LANES]) -> [f32; LANES] {
    ikq_simd::map(halves, |half| f32::from_bits(u32::from(half)))
}

#[cfg(test)]
mod tests {
    use ikq_formats::{QuantType, layout};
    use ikq_simd::{IsaOp, available, run};

    use super::*;

    struct Packed<'a> {
        layout: &'a Layout,
        numbers: &'a [[f32; LANES]],
        blocks: usize,
    }

    impl IsaOp for Packed<'_> {
        type Output = Vec<u8>;

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> Vec<u8> {
            let mut out = vec![0x5a; self.blocks * self.layout.bytes];
            pack_lanes(isa, self.layout, self.numbers, &mut out);
            out
        }
    }

    #[test]
    fn lanes_are_packed_like_single_blocks() {
        let laid = QuantType::ALL.iter().filter_map(|ty| layout(*ty).ok().filter(|l| l.words().is_some()));
        for layout in laid {
            // bits above a number's width, as slots have them, and no NaN, which may not stay as they are
            let bits =
                |i: usize, lane: usize| ((i * 16 + lane) as u32).wrapping_mul(0x9e37_79b1) & 0xbfff_ffff;
            let numbers: Vec<[f32; LANES]> = (0..layout.n_values())
                .map(|i| std::array::from_fn(|lane| f32::from_bits(bits(i, lane))))
                .collect();
            for blocks in [16, 3] {
                let mut expected = vec![0; blocks * layout.bytes];
                for (lane, block) in expected.chunks_exact_mut(layout.bytes).enumerate() {
                    let values: Vec<u32> = (0..layout.n_values()).map(|i| bits(i, lane)).collect();
                    layout.pack(&values, block);
                }
                for kind in available() {
                    let found = run(kind, Packed { layout, numbers: &numbers, blocks });
                    assert_eq!(found, expected, "{} values, {}", layout.n_values(), kind.name());
                }
            }
        }
    }

    #[test]
    fn halves_keep_their_bits() {
        let halves: [u16; LANES] = std::array::from_fn(|i| 0xfc00 >> i);
        assert_eq!(half_numbers(halves).map(|v| v.to_bits() as u16), halves);
    }
}
