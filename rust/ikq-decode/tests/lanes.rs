//! Units of sixteen rows side by side give what the decoder of one row gives, bit for bit, for every type on every
//! instruction set.

use std::marker::PhantomData;

use ikq_decode::lanes::{by_rows, lane_header};
use ikq_decode::{BlockType, Decode, LaneIntegers, LaneScales, LaneUnit, Scales, UNIT, Visitor, with_type};
use ikq_formats::{LANES, LaneForm, QuantType, lane_form};
use ikq_simd::{Isa, IsaKind, IsaOp, Scalar, available, run};

/// SplitMix64: any sequence of well-mixed bytes will do.
fn random_bytes(n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31).to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(next).take(n.div_ceil(8)).flatten().collect();
    bytes.truncate(n);
    bytes
}

/// The same bits, but for the payload of a NaN (random scales may be NaN).
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// The facts of a decoder that tests need.
struct Shape {
    unit_words: usize,
    unit_smalls: usize,
    unit_bytes: usize,
    header_bytes: usize,
    per_16: bool,
    has_min: bool,
}

fn shape<T: BlockType>() -> Shape {
    fn of<D: Decode<Scalar>>() -> Shape {
        Shape {
            unit_words: D::UNIT_WORDS,
            unit_smalls: D::UNIT_SMALLS,
            unit_bytes: D::UNIT_BYTES,
            header_bytes: D::HEADER_BYTES,
            per_16: D::PER_16,
            has_min: D::HAS_MIN,
        }
    }
    of::<T::Decoder<Scalar>>()
}

/// A unit's codes, each entry with four elements of sixteen rows, and its factors.
struct Decoded {
    codes: Vec<[u8; 64]>,
    scales: [[f32; 16]; 16],
    mins: [[f32; 16]; 16],
}

struct Lanes<'a, T> {
    unit: LaneUnit<'a>,
    headers: &'a [u8],
    by_rows: bool,
    ty: PhantomData<T>,
}

impl<T: BlockType> IsaOp for Lanes<'_, T> {
    type Output = Decoded;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Decoded {
        let header = lane_header::<I, T::Decoder<I>>(isa, self.headers);
        let mut factors = LaneScales::new(isa);
        match self.by_rows {
            true => by_rows::lane_scales::<I, T::Decoder<I>>(isa, header, &self.unit, &mut factors),
            false => T::Decoder::<I>::lane_scales(isa, header, &self.unit, &mut factors),
        }
        let mut codes = Vec::new();
        for b in 0..UNIT / 32 {
            let lanes = match self.by_rows {
                true => by_rows::lanes::<I, T::Decoder<I>>(isa, &self.unit, b),
                false => T::Decoder::<I>::lanes(isa, &self.unit, b),
            };
            for v in lanes {
                let mut bytes = [0; 64];
                isa.store(v, &mut bytes);
                codes.push(bytes);
            }
        }
        let mut out = Decoded { codes, scales: [[0.0; 16]; 16], mins: [[0.0; 16]; 16] };
        for k in 0..16 {
            isa.store_f(factors.scale[k], &mut out.scales[k]);
            isa.store_f(factors.min[k], &mut out.mins[k]);
        }
        out
    }
}

struct OwnLanes(QuantType);

impl Visitor for OwnLanes {
    type Output = ();

    fn visit<T: BlockType>(self) {
        let ty = self.0;
        let shape = shape::<T>();
        for seed in 0..20 {
            let words = random_bytes(64 * shape.unit_words, seed);
            let smalls = random_bytes(LANES * shape.unit_smalls, seed + 100);
            let headers = random_bytes(LANES * shape.header_bytes, seed + 200);
            let unit = LaneUnit { words: words.as_chunks().0, smalls: &smalls };
            let lanes =
                |kind, by_rows| run(kind, Lanes::<T> { unit, headers: &headers, by_rows, ty: PhantomData });
            for kind in available() {
                let (own, expected) = (lanes(kind, false), lanes(kind, true));
                for (i, (own, expected)) in own.codes.iter().zip(&expected.codes).enumerate() {
                    assert_eq!(own, expected, "{ty} on {}: elements {}..", kind.name(), 4 * i);
                }
                for k in 0..if shape.per_16 { 16 } else { 8 } {
                    for r in 0..LANES {
                        let place = format!("{ty} on {}: factor {k} of row {r}", kind.name());
                        let (a, b) = (own.scales[k][r], expected.scales[k][r]);
                        assert!(same(a, b), "{place}: {a}, not {b}");
                        let (a, b) = (own.mins[k][r], expected.mins[k][r]);
                        assert!(!shape.has_min || same(a, b), "{place}: min {a}, not {b}");
                    }
                }
            }
        }
    }
}

#[test]
fn lanes_are_those_of_single_rows() {
    let n = QuantType::ALL.iter().filter(|ty| !ty.is_interleaved() || ty.info().base.is_none());
    let n = n.filter(|ty| with_type(**ty, OwnLanes(**ty)).is_some()).count();
    assert_eq!(n, 50);
}

/// The integer factors of a unit of sixteen rows.
struct Integers<'a, T>(LaneUnit<'a>, PhantomData<T>);

impl<T: BlockType> IsaOp for Integers<'_, T> {
    /// Words of scales and of mins, and both float scales.
    type Output = ([[i32; 16]; 8], [[i32; 16]; 4], [[f32; 16]; 2]);

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let mut found = LaneIntegers::new(isa);
        T::Decoder::<I>::lane_integers(isa, &self.0, &mut found);
        let ints = |v: I::I| {
            let mut out = [0; 16];
            isa.store_i(v, &mut out);
            out
        };
        (found.scale.map(ints), found.min.map(ints), [isa.array(found.d), isa.array(found.dmin)])
    }
}

struct OwnIntegers(QuantType);

impl Visitor for OwnIntegers {
    type Output = bool;

    fn visit<T: BlockType>(self) -> bool {
        let ty = self.0;
        let shape = shape::<T>();
        let Some(integers) = <T::Decoder<Scalar> as Decode<Scalar>>::INTEGERS else { return false };
        let (n, step) = if shape.per_16 { (16, 1) } else { (8, 2) };
        let byte =
            |words: &[[i32; 16]], (word, at): (usize, usize), r: usize| (words[word][r] >> (8 * at)) as u8;
        for seed in 0..20 {
            let words = random_bytes(64 * shape.unit_words, seed);
            let smalls = random_bytes(LANES * shape.unit_smalls, seed + 100);
            let unit = LaneUnit { words: words.as_chunks().0, smalls: &smalls };
            for kind in available() {
                let (scales, mins, floats) = run(kind, Integers::<T>(unit, PhantomData));
                for (r, (d, dmin)) in floats[0].into_iter().zip(floats[1]).enumerate() {
                    let mut row = [0; 272];
                    by_rows::row::<Scalar, T::Decoder<Scalar>>(&unit, r, &mut row);
                    let expected = run(IsaKind::Scalar, OfRow::<T>(&row[..shape.unit_bytes], PhantomData));
                    for k in 0..n {
                        let place = format!("{ty} on {}: factor {k} of row {r}", kind.name());
                        let s = byte(&scales, integers.at(k), r);
                        let s = if integers.signed { i16::from(s as i8) } else { i16::from(s) };
                        assert!(integers.signed || s < 128, "{place}: scale {s}");
                        assert_eq!(s, expected.s[step * k], "{place}");
                        if shape.has_min {
                            let m = i16::from(byte(&mins, (k / 4, k % 4), r));
                            assert!(m < 128 && m == expected.m[step * k], "{place}: min {m}");
                        }
                    }
                    assert!(shape.header_bytes > 0 || same(d, expected.d[0]), "{ty}, row {r}");
                    assert!(!shape.has_min || same(dmin, expected.dm[0]), "{ty}, row {r}: mins");
                    assert!(expected.d.iter().all(|d| same(*d, expected.d[0])), "{ty}");
                }
            }
        }
        true
    }
}

/// The scales of a unit of one row, with 1 as its header's.
struct OfRow<'a, T>(&'a [u8], PhantomData<T>);

impl<T: BlockType> IsaOp for OfRow<'_, T> {
    type Output = Scales;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Scales {
        T::Decoder::<I>::scales(isa, 1.0, self.0)
    }
}

#[test]
fn integer_scales_are_those_of_single_rows() {
    let types = QuantType::ALL.iter().filter(|ty| with_type(**ty, OwnIntegers(**ty)) == Some(true));
    let plain = types.filter(|ty| !ty.is_interleaved()).count();
    assert_eq!(plain, 20);
}

/// Packs rows with `ikq_formats` and compares them with what decoders find in the units of the band.
/// Codes of 32 elements by the tables that they use and by the first, and the words that tell which those are.
struct ByFirst<'a, T>(&'a LaneUnit<'a>, usize, PhantomData<T>);

impl<T: BlockType> IsaOp for ByFirst<'_, T> {
    type Output = ([[[u8; 64]; 8]; 2], [i32; 16]);

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let ByFirst(unit, b, _) = self;
        let mut seconds = [0; 16];
        isa.store_i(T::Decoder::<I>::lane_seconds(isa, unit), &mut seconds);
        let mut codes = [[[0; 64]; 8]; 2];
        let found = [T::Decoder::<I>::lanes(isa, unit, b), T::Decoder::<I>::lanes_by_first(isa, unit, b)];
        for (codes, found) in codes.iter_mut().zip(found) {
            for (codes, found) in codes.iter_mut().zip(found) {
                isa.store(found, codes);
            }
        }
        (codes, seconds)
    }
}

/// Compares both kinds of codes; tells whether the type has a second table.
struct SecondTable(QuantType);

impl Visitor for SecondTable {
    type Output = bool;

    fn visit<T: BlockType>(self) -> bool {
        let ty = self.0;
        let shape = shape::<T>();
        let second = <T::Decoder<Scalar> as Decode<Scalar>>::SECOND;
        let words = random_bytes(64 * shape.unit_words, 7);
        let smalls = random_bytes(LANES * shape.unit_smalls, 8);
        let unit = LaneUnit { words: words.as_chunks().0, smalls: &smalls };
        for kind in available() {
            let mut n_second = 0;
            for b in 0..8 {
                let ([own, by_first], seconds) = run(kind, ByFirst::<T>(&unit, b, PhantomData));
                for (r, i, e) in (0..16 * 8 * 4).map(|n| (n / 32, n / 4 % 8, n % 4)) {
                    let is_second = seconds[r] >> (2 * b + i / 4) & 1 == 1;
                    n_second += usize::from(is_second);
                    let more = if is_second { second } else { 0 };
                    let place = format!("{ty} on {}: part {b}, vector {i}, row {r}", kind.name());
                    assert_eq!(own[i][4 * r + e], by_first[i][4 * r + e] + more, "{place}");
                    assert_eq!(seconds[r] >> 16, 0, "{place}");
                }
            }
            // random bits: both tables are used
            assert_eq!(n_second > 1000 && n_second < 3000, second > 0, "{ty}: {n_second} of 4096");
        }
        second > 0
    }
}

#[test]
fn codes_by_the_first_table_lack_what_the_second_has_more() {
    let types = QuantType::ALL.iter().filter(|ty| with_type(**ty, SecondTable(**ty)) == Some(true));
    // IQ2_K and IQ3_K
    assert_eq!(types.filter(|ty| !ty.is_interleaved()).count(), 2);
}

struct RowsOfBands(QuantType, LaneForm);

impl Visitor for RowsOfBands {
    type Output = ();

    fn visit<T: BlockType>(self) {
        let RowsOfBands(ty, form) = self;
        let shape = shape::<T>();
        let k = 2 * UNIT;
        let row_bytes = form.row_bytes(k);
        let rows = random_bytes(LANES * row_bytes, 5);
        let mut band = vec![0; form.band_bytes(k)];
        form.pack(&rows, k, &mut band);
        assert_eq!(form.by_unit(), T::Decoder::<Scalar>::BY_UNIT, "{ty}");
        let headers_at = form.headers_at(k);
        assert_eq!(headers_at, 2 * (64 * shape.unit_words + LANES * shape.unit_smalls), "{ty}");
        let runs: Vec<_> = form.runs(k).collect();
        assert_eq!(runs.len(), if form.by_unit() { 2 } else { 1 }, "{ty}");
        assert_eq!(form.header_bytes, shape.header_bytes, "{ty}");
        for u in 0..2 {
            // the unit's place in its run
            let (run, u_of_run) = if form.by_unit() { (&runs[u], 0) } else { (&runs[0], u) };
            let words = &band[run.words + 64 * shape.unit_words * u_of_run..][..64 * shape.unit_words];
            let smalls =
                &band[run.smalls + LANES * shape.unit_smalls * u_of_run..][..LANES * shape.unit_smalls];
            let unit = LaneUnit { words: words.as_chunks().0, smalls };
            for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
                let mut found = [0; 272];
                by_rows::row::<Scalar, T::Decoder<Scalar>>(&unit, lane, &mut found);
                let at = shape.header_bytes + u * shape.unit_bytes;
                assert_eq!(found[..shape.unit_bytes], row[at..at + shape.unit_bytes], "{ty}, row {lane}");
            }
        }
        // lane r has the scale in the header of row r
        let headers = &band[headers_at..];
        let lanes = run(IsaKind::Scalar, Headers::<T>(headers, PhantomData));
        for (lane, row) in lanes.into_iter().zip(rows.chunks_exact(row_bytes)) {
            assert!(same(lane, T::Decoder::<Scalar>::header(&row[..shape.header_bytes])), "{ty}");
        }
    }
}

struct Headers<'a, T>(&'a [u8], PhantomData<T>);

impl<T: BlockType> IsaOp for Headers<'_, T> {
    type Output = [f32; 16];

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> [f32; 16] {
        isa.array(lane_header::<I, T::Decoder<I>>(isa, self.0))
    }
}

#[test]
fn bands_are_cut_as_decoders_read_them() {
    let mut n = 0;
    for ty in QuantType::ALL.iter().copied() {
        if let Some(form) = lane_form(ty) {
            n += usize::from(with_type(ty, RowsOfBands(ty, form)).is_some());
        }
    }
    assert!(n > 70, "{n} types");
}
