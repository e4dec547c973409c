//! The types whose codes stand for one element each.

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

/// A type.
pub(crate) trait Columns: 'static {
    const TYPE: QuantType;
    const FORM: Form;
    type Coder<I: Isa>: Coder<I>;

    /// What finds the codes of a sub-block. `#[inline(always)]`.
    fn coder<I: Isa>(isa: I, options: EncodeOptions) -> Self::Coder<I>;
}

/// What is done for a type that is known when the program runs.
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

        /// Runs `work` for the type; `None` if it is none of these.
        pub(crate) fn for_type<W: ForType>(ty: QuantType, work: W) -> Option<W::Output> {
            match ty {
                $(QuantType::$ty => Some(work.run::<$ty>()),)*
                _ => None,
            }
        }
    };
}

/// Whether a type, or the plain twin of an interleaved one, is encoded with error feedback: its codes stand for one element
/// each, of up to six bits and without a condition that joins them (IQ4_KSS).
pub fn has_feedback(ty: QuantType) -> bool {
    TYPES.contains(&ty.info().base.unwrap_or(ty))
}

/// A level for every column.
type Levelled<L> = BesideEachOther<Each<L>, 1>;

#[inline(always)]
fn each<L>(levels: L) -> Levelled<L> {
    BesideEachOther(Each(levels))
}

#[inline(always)]
fn integers(lo: f32, hi: f32) -> Levelled<Integers> {
    each(Integers { lo, hi })
}

/// Sixteen levels, or fifteen of them.
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

/// The eighth sign follows from the others.
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
/// Two's complement.
const EIGHT_BITS: Grid =
    Grid { lo: -128, hi: 127, step: 1, read: |s| i32::from(s as u8 as i8), stored: |k| k as u32 & 0xff };
/// Odd numbers up to 31, a bit for the sign.
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
/// Steps of three: at a scale a little larger or smaller other points are nearest.
const SEVEN_BITS: Grid =
    Grid { lo: -64, hi: 63, step: 3, read: |s| s as i32 - 64, stored: |k| (k + 64) as u32 };
const FOUR_BITS_UP: Grid = Grid { lo: 0, hi: 15, step: 1, read: |s| s as i32, stored: |k| k as u32 };
/// Odd numbers from 1 on, of three or four bits.
const ODD_3: Grid = Grid { lo: 1, hi: 15, step: 2, read: |s| 2 * s as i32 + 1, stored: |k| (k / 2) as u32 };
const ODD_4: Grid = Grid { hi: 31, ..ODD_3 };
/// Odd numbers up to 127, stored as even ones.
const EVEN: Grid =
    Grid { lo: -127, hi: 127, step: 2, read: |s| s as i32 - 127, stored: |k| (k + 127) as u32 };

#[cfg(test)]
mod tests {
    use ikq_decode::dequantize;
    use ikq_formats::layout;
    use ikq_simd::{Lanes, Scalar, available};

    use super::*;
    use crate::form::{Choice, MOST_CHOICES};

    struct Check;

    impl ForType for Check {
        type Output = ();

        /// Every choice is what the type decodes to.
        fn run<T: Columns>(self) {
            let layout = layout(T::TYPE).expect("a layout");
            let n = layout.block_size;
            let x: Vec<f32> = (0..n).map(|i| ((i * i * 31 % 97) as f32 - 40.0) / 64.0).collect();
            let mut row = vec![0; ikq_formats::row_bytes(T::TYPE, n).expect("a block")];
            let kind = available()[0];
            ikq_encode::encode_rows(kind, T::TYPE, &x, n, None, EncodeOptions::default(), &mut row)
                .expect("floats");
            let header = T::TYPE.info().row_header_bytes;
            let of_row = crate::body::of_row(&row[..header]);
            let mut values = vec![0; layout.n_values()];
            layout.unpack(&row[header..], &mut values);
            let (form, places) = (T::FORM, T::FORM.places(layout));
            let levels = T::levels(Scalar, EncodeOptions::default());
            for sub in 0..n / form.sub {
                let mut choices = [Choice::default(); MOST_CHOICES];
                form.choices(&values, places, sub, of_row, &mut choices);
                for choice in &choices[..form.n_choices()] {
                    let mut changed = values.clone();
                    form.keep(&mut changed, places, sub, choice);
                    let mut other = row.clone();
                    layout.pack(&changed, &mut other[header..]);
                    let mut y = vec![0.0; n];
                    dequantize(kind, T::TYPE, &other, 1, n, &mut y).expect("a row");
                    for j in sub * form.sub..(sub + 1) * form.sub {
                        let inverse = if choice.a == 0.0 { 0.0 } else { 1.0 / choice.a };
                        let t = (y[j] - choice.b) * inverse;
                        let level = levels.nearest(Scalar, [t; 16])[0];
                        let code = u32::from(Scalar.slot_bytes(levels.code(Scalar, [t; 16]))[0]);
                        let found = choice.a * level + choice.b;
                        assert!((found - y[j]).abs() <= 1e-5 * y[j].abs().max(0.01), "{:?}", T::TYPE);
                        assert!(choice.a == 0.0 || code == changed[places.codes + j], "{:?}", T::TYPE);
                    }
                }
            }
        }
    }

    #[test]
    fn choices_are_what_types_decode_to() {
        for ty in TYPES {
            for_type(*ty, Check).expect("one of the types");
        }
    }

    #[test]
    fn interleaved_types_have_what_their_twins_have() {
        assert!(has_feedback(QuantType::Q4_K_R4) && has_feedback(QuantType::IQ4_KS_R4));
        assert!(!has_feedback(QuantType::IQ4_KSS) && !has_feedback(QuantType::IQ2_XXS));
    }
}
