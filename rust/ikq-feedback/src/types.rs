//! The types that are encoded with error feedback, and for each the [`Coder`](crate::coder::Coder) that finds its codes.

use ikq_encode::search::levels::{Four, Integers, Offset, Table, Table4, Wide};
use ikq_encode::search::trellis::Trellis;
use ikq_encode::{
    EncodeOptions, grid_search, magnitudes_of_16_bits, points_of_13_bits, points_of_16_bits,
    two_sets_of_points,
};
use ikq_formats::QuantType;
use ikq_formats::codebook::{
    IQ1_DELTA, IQ2NL_VALUES, IQ3NL_VALUES, IQ4K_VALUES, IQ4NL_VALUES, IQ5NL_VALUES, IQ6NL_VALUES,
};
use ikq_simd::Isa;

use crate::coder::Coder;
use crate::form::{Form, Grid, Scale, Shift};
use crate::groups::InGroups;
use crate::lanes::{BesideEachOther, Each, EvenFours, Pairs};
use crate::points::{Beside, Entries, Seeds};

/// A type that is encoded with error feedback.
pub(crate) trait Columns: 'static {
    const TYPE: QuantType;
    const FORM: Form;
    type Coder<I: Isa>: Coder<I>;

    /// The coder that finds the codes of a sub-block. Implementations must be `#[inline(always)]`.
    fn coder<I: Isa>(isa: I, options: EncodeOptions) -> Self::Coder<I>;
}

/// Work that is generic over the type, for callers that only know the type at run time.
pub(crate) trait ForType {
    type Output;
    fn run<T: Columns>(self) -> Self::Output;
}

macro_rules! types {
    ($($ty:ident: $coder:ty = $new:expr, $form:expr;)*) => {
        $(
            #[allow(non_camel_case_types)]
            struct $ty;

            impl Columns for $ty {
                const TYPE: QuantType = QuantType::$ty;
                const FORM: Form = $form;
                type Coder<I: Isa> = $coder;

                #[inline(always)]
                fn coder<I: Isa>(isa: I, options: EncodeOptions) -> $coder {
                    ($new)(isa, options)
                }
            }
        )*

        const TYPES: &[QuantType] = &[$(QuantType::$ty),*];

        /// Runs `work` for the type; `None` if it is not one of these types.
        pub(crate) fn for_type<W: ForType>(ty: QuantType, work: W) -> Option<W::Output> {
            match ty {
                $(QuantType::$ty => Some(work.run::<$ty>()),)*
                _ => None,
            }
        }
    };
}

/// Whether a type, or the plain twin of an interleaved one, can be encoded with error feedback. These are all types
/// with scales and codes of up to six bits, except ternary ones and those whose scales are 8-bit floats or powers
/// of two.
pub fn has_feedback(ty: QuantType) -> bool {
    TYPES.contains(&ty.info().base.unwrap_or(ty))
}

/// Types in which every column has a code of its own.
type Levelled<L> = BesideEachOther<Each<L>, 1>;

#[inline(always)]
fn each<L>(levels: L) -> Levelled<L> {
    BesideEachOther(Each(levels))
}

#[inline(always)]
fn integers(lo: f32, hi: f32) -> Levelled<Integers> {
    each(Integers { lo, hi })
}

/// The sixteen levels of Q4_0, or the fifteen without -8.
fn of_q4_0(options: EncodeOptions) -> Offset {
    let lo = if options.symmetric_q40 { -7.0 } else { -8.0 };
    Offset { levels: Integers { lo, hi: 7.0 }, by: lo + 8.0 }
}

fn entries<const CODES: usize, const BESIDE: usize>(
    ty: QuantType,
    beside: Beside,
    shift: f32,
) -> InGroups<Entries<CODES, BESIDE>> {
    let search = grid_search(ty).expect("a codebook type");
    InGroups(Entries { search, beside, shift })
}

/// Signs of which seven are stored, because the eighth follows from them.
const SEVEN_SIGNS: Beside = Beside::Signs(0x7f);
const EIGHT_SIGNS: Beside = Beside::Signs(0xff);

fn seeds<const PAIRS: usize, const SIGNS: usize>(
    sets: &'static [Trellis<PAIRS>],
) -> InGroups<Seeds<PAIRS, SIGNS>> {
    InGroups(Seeds { sets })
}

types! {
    Q4_0: Levelled<Offset> = |_, options| each(of_q4_0(options)), FLOAT;
    Q5_0: Levelled<Integers> = |_, _| integers(-16.0, 15.0), FLOAT;
    Q6_0: Levelled<Integers> = |_, _| integers(-32.0, 31.0), FLOAT;
    IQ4_NL: Levelled<Table4<I>> = |isa, _| each(Table4::new(isa, &IQ4NL_VALUES)), FLOAT;
    Q4_1: Levelled<Integers> = |_, _| integers(0.0, 15.0), FLOAT_AFFINE;
    Q5_1: Levelled<Integers> = |_, _| integers(0.0, 31.0), FLOAT_AFFINE;
    Q2_K: Levelled<Integers> = |_, _| integers(0.0, 3.0), Form { sub: 16, scale: Scale::Affine { top: 16 } };
    Q4_K: Levelled<Integers> = |_, _| integers(0.0, 15.0), Form { sub: 32, scale: Scale::Affine { top: 64 } };
    Q5_K: Levelled<Integers> = |_, _| integers(0.0, 31.0), Form { sub: 32, scale: Scale::Affine { top: 64 } };
    Q3_K: Levelled<Integers> = |_, _| integers(-4.0, 3.0), integer(16, SIX_BITS, Shift::Nowhere, 0.0);
    Q6_K: Levelled<Integers> = |_, _| integers(-32.0, 31.0), integer(16, EIGHT_BITS, Shift::Nowhere, 0.0);
    IQ4_XS: Levelled<Table4<I>> = |isa, _| each(Table4::new(isa, &IQ4NL_VALUES)), integer(32, SIX_BITS, Shift::Nowhere, 0.0);
    IQ2_K: Levelled<Four<I>> = |isa, _| each(Four::new(isa, &IQ2NL_VALUES[0])), integer(16, FOUR_BITS, Shift::Field, 5.0);
    IQ3_K: Levelled<Table<I, 8>> = |isa, _| each(Table::new(isa, &IQ3NL_VALUES[0])), integer(16, ODD, Shift::Field, 4.0);
    IQ4_K: Levelled<Table<I, 16>> = |isa, _| each(Table::new(isa, &IQ4K_VALUES[0])), integer(16, SIX_BITS, Shift::Field, 4.0);
    IQ5_K: Levelled<Wide<I, 32>> = |isa, _| each(Wide::new(isa, &IQ5NL_VALUES[0])), integer(16, SIX_BITS, Shift::Field, 2.0);
    IQ6_K: Levelled<Wide<I, 64>> = |isa, _| each(Wide::new(isa, &IQ6NL_VALUES[0])), integer(16, EIGHT_BITS, Shift::Field, 1.0);
    IQ2_KS: Levelled<Four<I>> = |isa, _| each(Four::new(isa, &IQ2NL_VALUES[0])), integer(32, FIVE_BITS, Shift::Field, 5.0);
    IQ3_KS: Levelled<Table<I, 8>> = |isa, _| each(Table::new(isa, &IQ3NL_VALUES[0])), integer(32, FIVE_BITS, Shift::Field, 4.0);
    IQ4_KS: Levelled<Table<I, 16>> = |isa, _| each(Table::new(isa, &IQ4K_VALUES[0])), integer(32, EVEN, Shift::LowestBit, 4.0);
    IQ5_KS: Levelled<Wide<I, 32>> = |isa, _| each(Wide::new(isa, &IQ5NL_VALUES[0])), integer(32, EVEN, Shift::LowestBit, 2.0);
    IQ4_KSS: BesideEachOther<EvenFours<I>, 2> = |isa, _| BesideEachOther(EvenFours::new(isa)), integer(32, EVEN, Shift::LowestBit, 4.0);
    IQ2_KL: BesideEachOther<Pairs, 2> = |_, _| BesideEachOther(Pairs), integer(32, SIX_BITS, Shift::Nowhere, 0.0);
    IQ2_XXS: InGroups<Entries<1, 1>> = |_, _| entries(QuantType::IQ2_XXS, SEVEN_SIGNS, 0.0), codebook(32, ODD_4, 0.125);
    IQ2_XS: InGroups<Entries<1, 1>> = |_, _| entries(QuantType::IQ2_XS, SEVEN_SIGNS, 0.0), codebook(16, ODD_4, 0.125);
    IQ2_S: InGroups<Entries<1, 1>> = |_, _| entries(QuantType::IQ2_S, EIGHT_SIGNS, 0.0), codebook(16, ODD_4, 0.125);
    IQ3_XXS: InGroups<Entries<2, 1>> = |_, _| entries(QuantType::IQ3_XXS, SEVEN_SIGNS, 0.0), codebook(32, ODD_4, 0.25);
    IQ3_S: InGroups<Entries<2, 1>> = |_, _| entries(QuantType::IQ3_S, EIGHT_SIGNS, 0.0), codebook(32, ODD_4, 1.0);
    IQ1_S: InGroups<Entries<1, 0>> = |_, _| entries(QuantType::IQ1_S, Beside::Nothing, IQ1_DELTA), Form {
        sub: 32,
        scale: Scale::Integer { grid: ODD_3, unit: 1.0, shift: Shift::Field, from: IQ1_DELTA, by: -2.0 * IQ1_DELTA },
    };
    IQ1_M: InGroups<Entries<1, 1>> = |_, _| entries(QuantType::IQ1_M, Beside::Shift, IQ1_DELTA), codebook(16, ODD_3, 1.0);
    IQ1_KT: InGroups<Seeds<4, 0>> = |_, _| seeds(points_of_13_bits()), Form { sub: 32, scale: Scale::Table { values: &IQ4NL_VALUES } };
    IQ2_KT: InGroups<Seeds<4, 0>> = |_, _| seeds(points_of_16_bits()), Form { sub: 32, scale: Scale::Table { values: &IQ4NL_VALUES } };
    IQ3_KT: InGroups<Seeds<4, 8>> = |_, _| seeds(magnitudes_of_16_bits()), integer(32, FOUR_BITS_UP, Shift::Nowhere, 0.0);
    IQ4_KT: InGroups<Seeds<2, 0>> = |_, _| seeds(two_sets_of_points()), integer(32, SEVEN_BITS, Shift::Field, 0.0);
}

const FLOAT: Form = Form { sub: 32, scale: Scale::Float };
const FLOAT_AFFINE: Form = Form { sub: 32, scale: Scale::FloatAffine };

const fn integer(sub: usize, grid: Grid, shift: Shift, by: f32) -> Form {
    Form { sub, scale: Scale::Integer { grid, unit: 1.0, shift, from: 0.0, by } }
}

const fn codebook(sub: usize, grid: Grid, unit: f32) -> Form {
    Form { sub, scale: Scale::Integer { grid, unit, shift: Shift::Nowhere, from: 0.0, by: 0.0 } }
}

const FOUR_BITS: Grid = Grid { lo: -8, hi: 7, step: 1, read: |s| s as i32 - 8, stored: |k| (k + 8) as u32 };
const FIVE_BITS: Grid =
    Grid { lo: -16, hi: 15, step: 1, read: |s| s as i32 - 16, stored: |k| (k + 16) as u32 };
const SIX_BITS: Grid =
    Grid { lo: -32, hi: 31, step: 1, read: |s| s as i32 - 32, stored: |k| (k + 32) as u32 };
/// Integer scales stored in two's complement.
const EIGHT_BITS: Grid =
    Grid { lo: -128, hi: 127, step: 1, read: |s| i32::from(s as u8 as i8), stored: |k| k as u32 & 0xff };
/// Odd numbers up to 31 with either sign, which has a bit of its own.
const ODD: Grid = Grid {
    lo: -31,
    hi: 31,
    step: 2,
    read: |s| {
        let k = 2 * (s as i32 & 15) + 1;
        if s & 16 != 0 { -k } else { k }
    },
    stored: |k| ((k.unsigned_abs() - 1) / 2) | if k < 0 { 16 } else { 0 },
};
/// Integers of seven bits. Neighbours are three apart: even a slightly different scale makes other points the
/// nearest.
const SEVEN_BITS: Grid =
    Grid { lo: -64, hi: 63, step: 3, read: |s| s as i32 - 64, stored: |k| (k + 64) as u32 };
const FOUR_BITS_UP: Grid = Grid { lo: 0, hi: 15, step: 1, read: |s| s as i32, stored: |k| k as u32 };
/// Odd numbers from 1 on, stored in three bits (here) or four.
const ODD_3: Grid = Grid { lo: 1, hi: 15, step: 2, read: |s| 2 * s as i32 + 1, stored: |k| (k / 2) as u32 };
const ODD_4: Grid = Grid { hi: 31, ..ODD_3 };
/// Odd numbers up to 127 with either sign, stored as even numbers, which leaves the lowest bit free.
const EVEN: Grid =
    Grid { lo: -127, hi: 127, step: 2, read: |s| s as i32 - 127, stored: |k| (k + 127) as u32 };

#[cfg(test)]
mod tests {
    use ikq_covariance::{Factors, Whole};
    use ikq_decode::dequantize;
    use ikq_formats::{layout, matrix_bytes, row_bytes};
    use ikq_simd::{IsaKind, Scalar, available};

    use super::*;
    use crate::coder::{Coded, MOST_SUB, SubBlock};
    use crate::form::{Choice, MOST_CHOICES};
    use crate::passes::LANES;
    use crate::tests::{factors, noise, tokens, whole_factors};

    struct Check;

    impl ForType for Check {
        type Output = ();

        /// Checks that with every choice, codes decode to the values that follow from the errors.
        fn run<T: Columns>(self) {
            let layout = layout(T::TYPE).expect("a layout");
            let n = layout.block_size;
            let x: Vec<f32> = noise(1, n).iter().map(|x| x / 4.0).collect();
            let mut row = vec![0; row_bytes(T::TYPE, n).expect("a block")];
            let kind = available()[0];
            ikq_encode::encode_rows(kind, T::TYPE, &x, n, None, EncodeOptions::default(), &mut row)
                .expect("floats");
            let header = T::TYPE.info().row_header_bytes;
            let of_row = crate::body::of_row(&row[..header]);
            let mut values = vec![0; layout.n_values()];
            layout.unpack(&row[header..], &mut values);
            let (form, places, factors) = (T::FORM, T::FORM.places(layout), factors(n));
            let coder = T::coder(Scalar, EncodeOptions::default());
            for sub in 0..n / form.sub {
                let at = sub * form.sub;
                let columns: Vec<[f32; LANES]> = x[at..at + form.sub].iter().map(|x| [*x; LANES]).collect();
                let mut choices = [Choice::default(); MOST_CHOICES];
                form.choices(&values, places, sub, of_row, &mut choices);
                for choice in &choices[..form.n_choices()] {
                    let mut errors = vec![[0.0; LANES]; form.sub];
                    let mut decoded = errors.clone();
                    let mut coded = Coded {
                        kept: [Choice::default(); LANES],
                        errors: &mut errors,
                        decoded: &mut decoded,
                        codes: [[0; LANES]; MOST_SUB],
                        beside: [[0; LANES]; MOST_SUB],
                    };
                    let one = [[*choice; LANES]];
                    let block = SubBlock { x: &columns, factors: &factors, at, choices: &one, n_rows: 1 };
                    coder.code(Scalar, &block, &mut coded);
                    assert_eq!(coded.kept[0], *choice);
                    let mut changed = values.clone();
                    form.keep(&mut changed, places, sub, choice);
                    let out = places.codes.of(&mut changed, sub).iter_mut();
                    out.zip(&coded.codes).for_each(|(out, codes)| *out = u32::from(codes[0]));
                    let out = places.beside.of(&mut changed, sub).iter_mut();
                    out.zip(&coded.beside).for_each(|(out, beside)| *out = u32::from(beside[0]));
                    assert_eq!(layout.check(T::TYPE, &changed), Ok(()));
                    let mut other = row.clone();
                    layout.pack(&changed, &mut other[header..]);
                    let mut y = vec![0.0; n];
                    dequantize(kind, T::TYPE, &other, 1, n, &mut y).expect("a row");
                    for j in 0..form.sub {
                        let spread: f32 =
                            (0..j).map(|p| errors[p][0] * factors.spread.get(at + p, at + j)).sum();
                        let found = x[at + j] - spread - errors[j][0];
                        let y = y[at + j];
                        assert!((found - y).abs() <= 1e-5, "{:?}: {found}, not {y}", T::TYPE);
                        let decoded = decoded[j][0];
                        assert!((decoded - y).abs() <= 1e-5, "{:?}: {decoded}, not {y}", T::TYPE);
                    }
                }
            }
        }
    }

    #[test]
    fn codes_decode_to_what_is_left_of_the_columns() {
        for ty in TYPES {
            for_type(*ty, Check).expect("one of the types");
        }
    }

    #[test]
    fn the_same_bytes_on_every_instruction_set_and_a_smaller_error_of_products() {
        // two whole units, and a part of one where blocks are small
        let (even, odd) = (factors(512), factors(544));
        for ty in TYPES {
            let factors = if layout(*ty).expect("a layout").block_size < 256 { &odd } else { &even };
            let k = factors.k();
            let (x, inputs) = (noise(3, 20 * k), tokens(k));
            let bytes = matrix_bytes(*ty, 20, k).expect("rows");
            let error = |rows: &[u8]| -> f64 {
                let mut y = vec![0.0; x.len()];
                dequantize(IsaKind::Scalar, *ty, rows, 20, k, &mut y).expect("rows");
                let d: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x - y).collect();
                let product = |d: &[f32], token: &[f32]| d.iter().zip(token).map(|(d, x)| d * x).sum::<f32>();
                let square = |d: &[f32], token: &[f32]| f64::from(product(d, token)).powi(2);
                let tokens = inputs.chunks_exact(k).step_by(7);
                d.chunks_exact(k).map(|d| tokens.clone().map(|token| square(d, token)).sum::<f64>()).sum()
            };
            let options = EncodeOptions::default();
            let mut plain = vec![0; bytes];
            ikq_encode::encode_rows(IsaKind::Scalar, *ty, &x, k, None, options, &mut plain).expect("floats");
            let mut first = vec![0; bytes];
            crate::encode_rows(IsaKind::Scalar, *ty, &x, None, options, factors, &mut first).expect("floats");
            assert!(error(&first) < 0.8 * error(&plain), "{ty:?}: {} of {}", error(&first), error(&plain));
            for kind in available() {
                let mut other = vec![0; bytes];
                crate::encode_rows(kind, *ty, &x, None, options, factors, &mut other).expect("floats");
                assert!(other == first, "{ty:?} on {}", kind.name());
            }
        }
    }

    /// Rows, and `d H d^T` of each, H as the factors have it.
    fn encoded(
        ty: QuantType,
        kind: IsaKind,
        x: &[f32],
        factors: &Factors,
        whole: &Whole,
    ) -> (Vec<u8>, Vec<f64>) {
        let k = factors.k();
        let options = EncodeOptions { biased: true, ..EncodeOptions::default() };
        let mut rows = vec![0; matrix_bytes(ty, x.len() / k, k).expect("rows")];
        crate::encode_rows(kind, ty, x, None, options, factors, &mut rows).expect("floats");
        let mut y = vec![0.0; x.len()];
        dequantize(IsaKind::Scalar, ty, &rows, x.len() / k, k, &mut y).expect("rows");
        let d: Vec<f64> = x.iter().zip(&y).map(|(x, y)| f64::from(*x) - f64::from(*y)).collect();
        let h = |p: usize, j: usize| f64::from(whole.get(p, j));
        let product = |d: &[f64], j: usize| (0..k).map(|p| d[p] * h(p, j)).sum::<f64>();
        let error = |d: &[f64]| (0..k).map(|j| product(d, j) * d[j]).sum();
        (rows, d.chunks_exact(k).map(error).collect())
    }

    #[test]
    fn rounds_make_the_error_of_each_row_smaller_and_give_the_same_bytes_everywhere() {
        let sizes = [512, 544].map(|k| (factors(k), whole_factors(k)));
        for ty in TYPES {
            let odd = layout(*ty).expect("a layout").block_size < 256;
            let (normal, most) = &sizes[usize::from(odd)];
            let (k, whole) = (normal.k(), most.whole.as_ref().expect("the covariance"));
            let x = noise(3, 20 * k);
            let kinds = available();
            let (_, before) = encoded(*ty, kinds[0], &x, normal, whole);
            let (rows, after) = encoded(*ty, kinds[0], &x, most, whole);
            for (row, (before, after)) in before.iter().zip(&after).enumerate() {
                // what gets smaller is computed from integers, with errors of a thousandth
                assert!(*after < 1.001 * before, "{ty:?}, row {row}: {after}, it was {before}");
            }
            let ratio = after.iter().sum::<f64>() / before.iter().sum::<f64>();
            assert!(ratio < 0.995, "{ty:?}: {ratio}");
            for kind in kinds {
                assert!(encoded(*ty, kind, &x, most, whole).0 == rows, "{ty:?} on {}", kind.name());
            }
            // a row does not depend on those beside it
            let alone = encoded(*ty, available()[0], &x[17 * k..18 * k], most, whole).0;
            assert!(rows.chunks_exact(alone.len()).nth(17) == Some(&alone[..]), "{ty:?}");
        }
    }

    #[test]
    fn interleaved_types_have_what_their_twins_have() {
        assert!(has_feedback(QuantType::Q4_K_R4) && has_feedback(QuantType::IQ2_XXS_R4));
        assert!(!has_feedback(QuantType::Q8_0) && !has_feedback(QuantType::IQ1_S_R4));
    }
}
