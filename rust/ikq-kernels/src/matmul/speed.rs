//! What products are measured against: reading memory, and the dot instruction with operands in registers.

use ikq_simd::{Isa, IsaKind, IsaOp, run};

/// Products of codes from registers, as many as the instruction set makes.
struct Peak;

/// Rounds of [`Peak`], of [`CHAINS`] times 64 multiply-adds.
const ROUNDS: usize = 50_000;

/// Independent sums, so that none waits for another.
const CHAINS: usize = 16;

/// Multiply-adds of [`peak`].
pub const PEAK_MULTIPLY_ADDS: usize = ROUNDS * CHAINS * 64;

impl IsaOp for Peak {
    type Output = i32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> i32 {
        let (w, x) = (isa.splat(std::hint::black_box(3)), isa.splat(std::hint::black_box(5)));
        let mut acc = [isa.splat_i(0); CHAINS];
        for (i, acc) in acc.iter_mut().enumerate() {
            // sums that differ, or they would be one
            *acc = isa.splat_i(std::hint::black_box(i as i32));
        }
        for _ in 0..ROUNDS {
            for acc in &mut acc {
                *acc = isa.dot4_unsigned(*acc, w, x);
            }
        }
        let mut out = [0; 16];
        let mut sum = isa.splat_i(0);
        for a in acc {
            sum = isa.add_i(sum, a);
        }
        isa.store_i(sum, &mut out);
        out[0]
    }
}

/// Whether an instruction set has a dot instruction, which [`peak`] needs.
pub fn has_peak(kind: IsaKind) -> bool {
    kind != IsaKind::Scalar
}

/// [`PEAK_MULTIPLY_ADDS`] multiply-adds by the dot instruction, with operands in registers: what no product can beat.
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
