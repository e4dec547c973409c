//! [`RowLanes`] in plain Rust, with which the other instruction sets must agree.

use super::RowLanes;
use crate::{Scalar, array};

impl RowLanes for Scalar {
    const LOOKED_UP: usize = usize::MAX;

    #[inline(always)]
    fn ints(self, v: [u8; 64]) -> [i32; 16] {
        let words = v.as_chunks::<4>().0;
        array(|i| i32::from_le_bytes(words[i]))
    }
    #[inline(always)]
    fn of_ints(self, v: [i32; 16]) -> [u8; 64] {
        let mut out = [0; 64];
        for (out, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(v) {
            *out = v.to_le_bytes();
        }
        out
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; 16]) -> [i32; 16] {
        array(|i| i32::from(x[i]))
    }
    #[inline(always)]
    fn load_u16(self, x: &[u8; 32]) -> [i32; 16] {
        array(|i| i32::from(u16::from_le_bytes([x[2 * i], x[2 * i + 1]])))
    }
    #[inline(always)]
    fn bits(self, v: [u8; 64], n: u32, mask: u8) -> [u8; 64] {
        array(|i| v[i] >> n & mask)
    }
    #[inline(always)]
    fn sra_i(self, v: [i32; 16], by: u32) -> [i32; 16] {
        array(|i| v[i] >> by)
    }
    #[inline(always)]
    fn where_bit(self, v: [i32; 16], bit: u32, value: i32) -> [i32; 16] {
        array(|i| if v[i] >> bit & 1 == 1 { value } else { 0 })
    }
    #[inline(always)]
    fn float_of_f16(self, v: [i32; 16]) -> [f32; 16] {
        array(|i| crate::scalar::f16_to_f32(v[i] as u16))
    }
    #[inline(always)]
    fn bit_field(self, v: [u8; 64], from: u32, to: u32, mask: u8) -> [u8; 64] {
        array(|i| (v[i] >> from & mask) << to)
    }
    #[inline(always)]
    fn spread_bits(self, v: [i32; 16], i: usize, to: u32) -> [u8; 64] {
        array(|j| ((v[j / 4] >> (4 * i + j % 4) & 1) << to) as u8)
    }
    #[inline(always)]
    fn spread_crumbs(self, v: [i32; 16], i: usize) -> [u8; 64] {
        array(|j| (v[j / 4] >> (8 * i + 2 * (j % 4)) & 3) as u8)
    }
    #[inline(always)]
    fn pick(self, v: [u8; 64], from: [u8; 4]) -> [u8; 64] {
        array(|j| v[j / 4 * 4 + usize::from(from[j % 4])])
    }
    #[inline(always)]
    fn byte(self, v: [i32; 16], k: usize) -> [i32; 16] {
        array(|i| v[i] >> (8 * k) & 0xff)
    }
    #[inline(always)]
    fn two_bytes<const SIGNED: bool>(self, v: [i32; 16], k: [usize; 2]) -> [i32; 16] {
        let number = |v: i32, k: usize| {
            let byte = (v >> (8 * k)) as u8;
            if SIGNED { i32::from(byte as i8) } else { i32::from(byte) }
        };
        array(|i| number(v[i], k[0]) & 0xffff | number(v[i], k[1]) << 16)
    }
    #[inline(always)]
    fn negate_where_bit(self, v: [u8; 64], bits: [u8; 64], bit: u32) -> [u8; 64] {
        array(|i| if bits[i] >> bit & 1 == 1 { v[i].wrapping_neg() } else { v[i] })
    }
    #[inline(always)]
    fn with_parity(self, v: [i32; 16]) -> [i32; 16] {
        array(|i| {
            let bytes = v[i].to_le_bytes();
            let even = |b: u8| b & 0x7f | ((b & 0x7f).count_ones() as u8 & 1) << 7;
            i32::from_le_bytes(array(|e| even(bytes[e])))
        })
    }
    #[inline(always)]
    fn trits(self, v: [u8; 64], powers: [u8; 4]) -> [u8; 64] {
        array(|j| ((u16::from(v[j].wrapping_mul(powers[j % 4])) * 3) >> 8) as u8)
    }
    #[inline(always)]
    fn trellis(self, seeds: [i32; 16], multipliers: &[u32; 4]) -> [u8; 64] {
        array(|j| crate::scalar::trellis_value((seeds[j / 4] as u32).wrapping_mul(multipliers[j % 4])))
    }
}
