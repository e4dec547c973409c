//! Codebooks and value tables: what codes stand for.
//!
//! | table | what |
//! |---|---|
//! | `IQ1S_GRID` | 2048 entries of 8 elements -1, 0, 1 (IQ1_S, IQ1_M); bytes are two's complement |
//! | `IQ2XXS_GRID`, `IQ2XS_GRID`, `IQ2S_GRID` | 256, 512, 1024 entries of 8 magnitudes 8, 25, 43 |
//! | `IQ3XXS_GRID`, `IQ3S_GRID` | 256, 512 entries of 4 magnitudes |
//! | `KSIGNS` | 7-bit sign code -> 8 sign bits, bit j set: element j is negative |
//! | `SIGN_SCRAMBLE` | 7-bit sign code -> the code that the `_R4` forms store |
//! | `*_VALUES`, `FP4_E2M1_X2` | non-linear tables (`values.rs`) |
//! | `IQ1BN_TRITS` | packed ternary byte -> five trits (`trits.rs`) |
//! | [`ue4m3_half`], [`ue4m3_from_f32`] | the scale bytes of NVFP4 (`ue4m3.rs`) |
//! | `KT_*` | generator of the trellis types (`trellis.rs`) |
//!
//! A grid entry is one integer whose byte j, counted from the lowest, is element j. Grids are stored
//! packed (2 or 3 bits per element) in generated files and expanded here at compile time; the tests
//! check every expanded table against a CRC that was taken from the source of the numbers.

#[cfg(test)]
mod checksums;
mod iq1_grid;
mod iq2_grids;
mod iq3_grids;
mod signs;
mod trellis;
mod trits;
mod ue4m3;
mod values;

pub use iq1_grid::IQ1S_LEVELS;
pub use iq2_grids::{IQ2S_LEVELS, IQ2XS_LEVELS, IQ2XXS_LEVELS};
pub use iq3_grids::{IQ3S_LEVELS, IQ3XXS_LEVELS};
pub use signs::{KSIGNS, SIGN_SCRAMBLE, SIGN_UNSCRAMBLE};
pub use trellis::{
    KT_BYTE_MASK, KT_CENTER, KT_MULTIPLIER, KT_OFFSET, KT_OFFSET_IQ4_ALT, KT_POWERS, kt_value, kt_values,
};
pub use trits::{IQ1BN_POWERS, IQ1BN_TRITS, pack_trits, trit};
pub use ue4m3::{ue4m3_from_f32, ue4m3_half};
pub use values::*;

/// Shift that the sign bit of IQ1_S, IQ1_M and their `_R4` forms adds (+) or subtracts (-).
pub const IQ1_DELTA: f32 = 0.125;

/// IQ1_S, IQ1_M.
pub static IQ1S_GRID: [u64; 2048] = {
    let l = iq1_grid::IQ1S_LEVELS;
    expand_8(&iq1_grid::IQ1S_PACKED, [l[0] as u8, l[1] as u8, l[2] as u8])
};
/// IQ2_XXS.
pub static IQ2XXS_GRID: [u64; 256] = expand_8(&iq2_grids::IQ2XXS_PACKED, IQ2XXS_LEVELS);
/// IQ2_XS.
pub static IQ2XS_GRID: [u64; 512] = expand_8(&iq2_grids::IQ2XS_PACKED, IQ2XS_LEVELS);
/// IQ2_S.
pub static IQ2S_GRID: [u64; 1024] = expand_8(&iq2_grids::IQ2S_PACKED, IQ2S_LEVELS);
/// IQ3_XXS.
pub static IQ3XXS_GRID: [u32; 256] = expand_4(&iq3_grids::IQ3XXS_PACKED, IQ3XXS_LEVELS);
/// IQ3_S.
pub static IQ3S_GRID: [u32; 512] = expand_4(&iq3_grids::IQ3S_PACKED, IQ3S_LEVELS);

/// Eight elements of two bits each -> eight bytes.
const fn expand_8<const N: usize>(packed: &[u16; N], levels: [u8; 3]) -> [u64; N] {
    let mut out = [0; N];
    let mut i = 0;
    while i < N {
        let mut j = 0;
        while j < 8 {
            out[i] |= (levels[(packed[i] >> (2 * j) & 3) as usize] as u64) << (8 * j);
            j += 1;
        }
        i += 1;
    }
    out
}

/// Four elements of three bits each -> four bytes.
const fn expand_4<const N: usize>(packed: &[u16; N], levels: [u8; 8]) -> [u32; N] {
    let mut out = [0; N];
    let mut i = 0;
    while i < N {
        let mut j = 0;
        while j < 4 {
            out[i] |= (levels[(packed[i] >> (3 * j) & 7) as usize] as u32) << (8 * j);
            j += 1;
        }
        i += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crc32(bytes: impl IntoIterator<Item = u8>) -> u32 {
        !bytes.into_iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(byte), |c, _| c >> 1 ^ (0xedb8_8320 & (c & 1).wrapping_neg()))
        })
    }

    fn bytes_of(name: &str) -> Vec<u8> {
        let wide = |g: &[u64]| g.iter().flat_map(|v| v.to_le_bytes()).collect();
        let narrow = |g: &[u32]| g.iter().flat_map(|v| v.to_le_bytes()).collect();
        let signed = |v: &[i8]| v.iter().map(|b| *b as u8).collect();
        match name {
            "IQ1S_GRID" => wide(&IQ1S_GRID),
            "IQ2XXS_GRID" => wide(&IQ2XXS_GRID),
            "IQ2XS_GRID" => wide(&IQ2XS_GRID),
            "IQ2S_GRID" => wide(&IQ2S_GRID),
            "IQ3XXS_GRID" => narrow(&IQ3XXS_GRID),
            "IQ3S_GRID" => narrow(&IQ3S_GRID),
            "IQ4NL_VALUES" => signed(&IQ4NL_VALUES),
            "IQ2NL_VALUES" => signed(IQ2NL_VALUES.as_flattened()),
            "IQ3NL_VALUES" => signed(IQ3NL_VALUES.as_flattened()),
            "IQ4K_VALUES" => signed(IQ4K_VALUES.as_flattened()),
            "IQ5NL_VALUES" => signed(IQ5NL_VALUES.as_flattened()),
            "IQ6NL_VALUES" => signed(IQ6NL_VALUES.as_flattened()),
            "IQ2KL_VALUES" => signed(IQ2KL_VALUES.as_flattened()),
            "FP4_E2M1_X2" => signed(&FP4_E2M1_X2),
            "IQ2KL_INDEX" => signed(&IQ2KL_INDEX),
            "IQ2KL_NEIGHBOURS" => IQ2KL_NEIGHBOURS.as_flattened().to_vec(),
            "KSIGNS" => KSIGNS.to_vec(),
            "SIGN_SCRAMBLE" => SIGN_SCRAMBLE.to_vec(),
            "IQ1BN_TRITS" => IQ1BN_TRITS.as_flattened().to_vec(),
            _ => panic!("no such table: {name}"),
        }
    }

    #[test]
    fn every_table_has_the_checksum_of_its_source() {
        assert_eq!(crc32(*b"123456789"), 0xcbf4_3926);
        for (name, crc) in checksums::CHECKSUMS {
            assert_eq!(crc32(bytes_of(name)), *crc, "{name}");
        }
    }

    #[test]
    fn grid_entries_are_distinct() {
        // an encoder that searches nearest entries relies on it
        for mut grid in [IQ1S_GRID.to_vec(), IQ2XXS_GRID.to_vec(), IQ2XS_GRID.to_vec(), IQ2S_GRID.to_vec()] {
            let n = grid.len();
            grid.sort_unstable();
            grid.dedup();
            assert_eq!(grid.len(), n);
        }
    }
}
