//! Codebooks in the forms in which [`super::RowLanes`] looks up entries.

/// A codebook of entries of eight elements, each one of four levels. `N` is a power of two, at least 256.
pub struct Codebook8<const N: usize> {
    /// The levels of the entries in two halves: that of element `4 h + j` is in bits `2 j` and `2 j + 1` of half h.
    pub levels: [[u8; N]; 2],
    /// The levels of the entries, that of element j in byte j.
    pub bytes: [u64; N],
    /// The value of level l with sign bit s is at `l + 4 s`; all values repeat after that.
    pub values: [i8; 64],
}

/// A codebook of entries of four elements, each one of eight levels. `N` is a power of two, at least 128.
pub struct Codebook4<const N: usize> {
    /// The levels of the entries in two halves: that of element `2 h + j` is in the three bits from bit `3 j` of half h on.
    pub levels: [[u8; N]; 2],
    /// The levels of the entries, that of element j in byte j.
    pub bytes: [u32; N],
    /// The value of level l with sign bit s is at `l + 8 s`; all values repeat after that.
    pub values: [i8; 64],
}

impl<const N: usize> Codebook8<N> {
    /// The codebook of entries whose byte j is the level of element j.
    pub const fn new(bytes: [u64; N], values: [i8; 8]) -> Codebook8<N> {
        assert!(N.is_power_of_two() && N >= 256);
        let mut book = Codebook8 { levels: [[0; N]; 2], bytes, values: [0; 64] };
        let mut i = 0;
        while i < N {
            let mut j = 0;
            while j < 8 {
                let level = bytes[i] >> (8 * j) & 0xff;
                assert!(level < 4);
                book.levels[j / 4][i] |= (level as u8) << (2 * (j % 4));
                j += 1;
            }
            i += 1;
        }
        let mut i = 0;
        while i < 64 {
            book.values[i] = values[i % 8];
            i += 1;
        }
        book
    }
}

impl<const N: usize> Codebook4<N> {
    /// The codebook of entries whose byte j is the level of element j.
    pub const fn new(bytes: [u32; N], values: [i8; 16]) -> Codebook4<N> {
        assert!(N.is_power_of_two() && N >= 128);
        let mut book = Codebook4 { levels: [[0; N]; 2], bytes, values: [0; 64] };
        let mut i = 0;
        while i < N {
            let mut j = 0;
            while j < 4 {
                let level = bytes[i] >> (8 * j) & 0xff;
                assert!(level < 8);
                book.levels[j / 2][i] |= (level as u8) << (3 * (j % 2));
                j += 1;
            }
            i += 1;
        }
        let mut i = 0;
        while i < 64 {
            book.values[i] = values[i % 16];
            i += 1;
        }
        book
    }
}
