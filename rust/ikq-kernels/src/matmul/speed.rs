//! What products are measured against: reading memory, and products of codes that are near.

use ikq_simd::{Isa, IsaKind, IsaOp, run};

/// As many products of codes as the instruction set makes: its dot instruction, or products of pairs that are added in 16
/// bits.
struct Peak;

/// Rounds of [`Peak`], of [`CHAINS`] times 64 multiply-adds.
const ROUNDS: usize = 50_000;

/// Independent sums, so that none waits for another. Sets with few registers have half of their registers for these.
const CHAINS: usize = 16;

/// Codes at the start of cache lines.
#[repr(align(64))]
struct Lines([[u8; 64]; CHAINS]);

/// Multiply-adds of [`peak`].
pub const PEAK_MULTIPLY_ADDS: usize = ROUNDS * CHAINS * 64;

impl IsaOp for Peak {
    type Output = i32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> i32 {
        let x = isa.splat(std::hint::black_box(5));
        // the compiler does not know that they stay the same, or it would multiply only once
        let mut codes = Lines([[3; 64]; CHAINS]);
        let mut sum = isa.splat_i(0);
        if I::CODE_BIAS != 0 {
            let mut acc = [isa.splat_i(0); CHAINS];
            for _ in 0..ROUNDS {
                std::hint::black_box(&mut codes);
                for (acc, codes) in acc.iter_mut().zip(&codes.0) {
                    *acc = isa.dot4_unsigned(*acc, isa.load(codes), x);
                }
            }
            for acc in acc {
                sum = isa.add_i(sum, acc);
            }
        } else {
            // values of two registers each
            const AT_ONCE: usize = 4;
            let mut acc = [isa.pair_products(isa.splat(0), x); AT_ONCE];
            for _ in 0..ROUNDS * CHAINS / AT_ONCE {
                std::hint::black_box(&mut codes);
                for (acc, codes) in acc.iter_mut().zip(&codes.0) {
                    *acc = isa.add_pairs(*acc, isa.pair_products(isa.load(codes), x));
                }
            }
            for acc in acc {
                sum = isa.sum_pairs(sum, acc);
            }
        }
        let mut out = [0; 16];
        isa.store_i(sum, &mut out);
        // of all lanes, or what only other lanes need would be left out
        out.iter().fold(0, |a: i32, b| a.wrapping_add(*b))
    }
}

/// Whether [`peak`] says something of an instruction set: the scalar one has no products of codes.
pub fn has_peak(kind: IsaKind) -> bool {
    kind != IsaKind::Scalar
}

/// [`PEAK_MULTIPLY_ADDS`] multiply-adds of codes that are near, without scales: what no product can beat.
pub fn peak(kind: IsaKind) {
    std::hint::black_box(run(kind, Peak));
}

/// A sum of all bytes but the last few, which takes the time of reading them.
pub fn read(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 8];
    for line in bytes.chunks_exact(64) {
        for (sum, word) in sums.iter_mut().zip(line.chunks_exact(8)) {
            *sum = sum.wrapping_add(word.first_chunk().map_or(0, |w| u64::from_le_bytes(*w)));
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        let bytes: Vec<u8> = (0..64 * 5).map(|i| (i % 251) as u8).collect();
        let words = bytes.chunks_exact(8).map(|w| u64::from_le_bytes(*w.first_chunk().expect("eight")));
        assert_eq!(read(&bytes), words.fold(0, u64::wrapping_add));
    }
}
