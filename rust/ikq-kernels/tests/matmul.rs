//! Products of every type on every instruction set against sums in f64, from weights as they stand in files and
//! from bands of sixteen rows: the same bits, whatever rows and columns are computed together.
//!
//! Bounds are those of float32 rounding alone: a product takes part in at most `n` roundings, so its share of
//! the error is at most `n` halves of a last place (`2^-24`) of its magnitude, to first order.

use ikq_decode::{BlockType, Decode, UNIT, Visitor, dequantize, with_type};
use ikq_formats::{Family, QuantType, RowForm, deinterleave_group, lane_form, row_form};
use ikq_kernels::act::{ActBlock, Activations};
use ikq_kernels::matmul::check::{random_columns, random_matrix};
use ikq_kernels::matmul::{
    Compute, Input, Matrix, Scratch, input, kernel_name, lane_bytes, multiply, pack, self_test, unpack,
};
use ikq_simd::{IsaKind, Scalar, available};

/// Half a last place, and some for products of roundings.
const HALF_ULP: f64 = 1.001 / (1 << 24) as f64;

/// Types that products are made with.
fn types() -> impl Iterator<Item = QuantType> {
    let wanted = |t: &QuantType| {
        ikq_decode::facts(*t).is_some() || t.info().family == Family::Float || *t == QuantType::BF16_R16
    };
    QuantType::ALL.iter().copied().filter(wanted)
}

/// The weights, and of each the sum of magnitudes it is the difference of.
struct Weights {
    values: Vec<f32>,
    magnitudes: Vec<f32>,
}

impl Weights {
    fn of(ty: QuantType, data: &[u8], n_rows: usize, k: usize) -> Weights {
        let mut values = vec![0.0; n_rows * k];
        dequantize(IsaKind::Scalar, ty, data, n_rows, k, &mut values).expect("a matrix");
        let mut magnitudes: Vec<f32> = values.iter().map(|v| v.abs()).collect();
        if ikq_decode::facts(ty).is_some_and(|f| f.has_min) {
            let mut rows = data.to_vec();
            if ty.is_interleaved() {
                let group = data.len() / (n_rows / ty.info().rows);
                for (data, rows) in data.chunks_exact(group).zip(rows.chunks_exact_mut(group)) {
                    deinterleave_group(ty, data, k, rows).expect("whole groups");
                }
            }
            for (row, m) in rows.chunks_exact(rows.len() / n_rows).zip(magnitudes.chunks_exact_mut(k)) {
                with_type(ty, AddMins { row, magnitudes: m });
            }
        }
        Weights { values, magnitudes }
    }
}

/// Adds twice each min: `|y| + 2 |m|` is at least `|d s code| + |m|`.
struct AddMins<'a> {
    row: &'a [u8],
    magnitudes: &'a mut [f32],
}

impl Visitor for AddMins<'_> {
    type Output = ();

    fn visit<T: BlockType>(self) {
        fn add<D: Decode<Scalar>>(row: &[u8], magnitudes: &mut [f32]) {
            let (head, blocks) = row.split_at(D::HEADER_BYTES);
            for (unit, magnitudes) in blocks.chunks(D::UNIT_BYTES).zip(magnitudes.chunks_mut(UNIT)) {
                let mut whole = vec![0; D::UNIT_BYTES];
                whole[..unit.len()].copy_from_slice(unit);
                let min = D::scales(Scalar, D::header(head), &whole).min();
                for (i, m) in magnitudes.iter_mut().enumerate() {
                    *m += 2.0 * min[i / 16].abs();
                }
            }
        }
        add::<T::Decoder<Scalar>>(self.row, self.magnitudes);
    }
}

/// A column as a product reads it.
fn column(acts: &Activations, column: usize, form: Input) -> Vec<f64> {
    match form {
        Input::Floats => acts.floats(column).iter().map(|x| f64::from(*x)).collect(),
        Input::Q8 => {
            let value = |i: usize| {
                let block = &acts.units(column)[i / UNIT][i % UNIT / 32];
                f64::from(block.codes[i % 32]) * f64::from(block.d)
            };
            (0..acts.k()).map(value).collect()
        }
    }
}

/// Roundings that a product takes part in.
fn n_roundings(ty: QuantType, k: usize, form: Input) -> f64 {
    let n = match form {
        // the product where it is not fused, a sum of a quarter of the elements, the sum of four
        Input::Floats => 1 + k.div_ceil(4) + 2,
        Input::Q8 => {
            let facts = ikq_decode::facts(ty).expect("a block type");
            let mins = usize::from(facts.has_min) * if facts.per_16 { 2 } else { 1 };
            // an addition per 32 elements, and one or two for mins; the product with a scale, the addition of a half,
            // the row's scale times the factor, and its product with the sum; two roundings of the weight itself
            k.div_ceil(UNIT) * 8 * (1 + mins) + 4 + 2
        }
    };
    n as f64 * HALF_ULP
}

/// The bytes of [`pack`] for a matrix in file form.
fn bands(kind: IsaKind, file: &Matrix<'_>) -> Vec<u8> {
    let n_bytes = lane_bytes(file.ty(), file.n_rows(), file.k()).expect("a shape that fits");
    let mut out = vec![0xee; n_bytes];
    pack(kind, file.ty(), file.k(), file.data(), &mut out);
    out
}

/// A matrix in both forms with its columns, on one instruction set.
struct Case<'a> {
    kind: IsaKind,
    compute: Compute,
    acts: &'a Activations,
    file: Matrix<'a>,
    lanes: Matrix<'a>,
    weights: &'a Weights,
    /// Bits of the products that were computed, by column and row.
    seen: Vec<Option<u32>>,
}

impl<'a> Case<'a> {
    fn new(
        kind: IsaKind,
        compute: Compute,
        acts: &'a Activations,
        file: Matrix<'a>,
        bands: &'a [u8],
        weights: &'a Weights,
    ) -> Case<'a> {
        let (ty, n_rows, k) = (file.ty(), file.n_rows(), file.k());
        let lanes = Matrix::lanes(ty, n_rows, k, bands, file.scale()).expect("bands of the matrix");
        let seen = vec![None; n_rows * acts.n_columns()];
        Case { kind, compute, acts, file, lanes, weights, seen }
    }

    /// Checks rows from the file form and, where they are whole bands, from the device form.
    fn check(&mut self, rows: std::ops::Range<usize>, columns: &[u32], scratch: &mut Scratch) {
        let (ty, n, n_rows) = (self.file.ty(), rows.len(), self.file.n_rows());
        let whole = rows.start.is_multiple_of(16) && (rows.end.is_multiple_of(16) || rows.end == n_rows);
        let forms = [("file", self.file), ("lanes", self.lanes)];
        for (form, matrix) in forms.into_iter().take(if whole { 2 } else { 1 }) {
            let mut out = vec![f32::NAN; n * columns.len()];
            multiply(self.kind, self.compute, &matrix, rows.clone(), self.acts, columns, scratch, &mut out);
            for (out, c) in out.chunks_exact(n).zip(columns) {
                let mut x = None;
                for (out, r) in out.iter().zip(rows.clone()) {
                    let place = || {
                        let (kind, n) = (self.kind.name(), columns.len());
                        format!("{ty} as {form} on {kind}, {:?}, row {r}, column {c} of {n}", self.compute)
                    };
                    match self.seen[*c as usize * n_rows + r] {
                        Some(bits) => assert_eq!(out.to_bits(), bits, "{}: {out}", place()),
                        None => {
                            let x = x.get_or_insert_with(|| {
                                column(self.acts, *c as usize, input(ty, self.compute))
                            });
                            self.check_one(r, x, *out, place);
                            self.seen[*c as usize * n_rows + r] = Some(out.to_bits());
                        }
                    }
                }
            }
        }
    }

    fn check_one(&self, row: usize, x: &[f64], found: f32, place: impl Fn() -> String) {
        let (ty, k) = (self.file.ty(), self.file.k());
        let form = input(ty, self.compute);
        let factor = match form {
            Input::Floats => 1.0,
            Input::Q8 => f64::from(ikq_decode::facts(ty).expect("a block type").product_factor),
        };
        let (mut sum, mut magnitude) = (0.0, 0.0);
        for (i, x) in x.iter().enumerate() {
            sum += f64::from(self.weights.values[row * k + i]) * x;
            magnitude += f64::from(self.weights.magnitudes[row * k + i]) * x.abs();
        }
        // sums of subnormal size have errors of their own
        let bound = factor * magnitude * n_roundings(ty, k, form) + 1e-37;
        let share = (f64::from(found) - factor * sum).abs() / bound;
        assert!(share <= 1.0, "{}: {found} for {}, {share} of the bound", place(), factor * sum);
    }
}

/// Row lengths: with whole units, ending inside one, and longer than what is computed in one go.
fn lengths(ty: QuantType) -> Vec<usize> {
    match (ty.info().block_size, ty) {
        (_, QuantType::I2_S) => vec![768, 384, 1408],
        (1, QuantType::BF16_R16) => vec![300, 1302],
        (1, _) => vec![301, 1301],
        (block, _) => [768, UNIT + block, 5 * UNIT].into_iter().filter(|k| k % block == 0).collect(),
    }
}

#[test]
fn every_type_on_every_set_is_right_to_rounding() {
    let mut scratch = Scratch::default();
    for ty in types() {
        let step = ty.info().rows;
        for k in lengths(ty) {
            let n_rows = 36usize.next_multiple_of(step);
            let data = random_matrix(ty, n_rows, k, k as u64);
            let weights = Weights::of(ty, &data, n_rows, k);
            let file = Matrix::new(ty, n_rows, k, &data).expect("a matrix");
            for kind in available() {
                let acts = random_columns(kind, k, 34, 5);
                let bands = bands(kind, &file);
                for compute in [Compute::Auto, Compute::F32] {
                    let mut case = Case::new(kind, compute, &acts, file, &bands, &weights);
                    let counts: &[usize] = match (compute, k) {
                        (Compute::Auto, 768) => &[1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33],
                        _ => &[1, 2, 5, 13],
                    };
                    for n in counts {
                        let columns: Vec<u32> = (0..*n as u32).map(|c| 33 - c * 34 / *n as u32).collect();
                        // not all rows, and not a multiple of sixteen
                        let rows = if n % 2 == 1 { 0..n_rows } else { step..n_rows };
                        case.check(rows, &columns, &mut scratch);
                    }
                    case.check(0..step, &[7], &mut scratch);
                    case.check(step..2 * step, &[3, 9, 4], &mut scratch);
                    case.check(16..n_rows, &[3, 9, 4], &mut scratch);
                }
            }
        }
    }
}

#[test]
fn many_columns_of_every_type() {
    let mut scratch = Scratch::default();
    let columns: Vec<u32> = (0..512).rev().collect();
    for ty in types() {
        let k = if ty.info().block_size == 1 { 256 } else { 512 };
        // a band and a row, or whole groups
        let n_rows = if ty.is_interleaved() { 16 } else { 17 };
        let data = random_matrix(ty, n_rows, k, 3);
        let weights = Weights::of(ty, &data, n_rows, k);
        let file = Matrix::new(ty, n_rows, k, &data).expect("a matrix");
        for kind in available() {
            let acts = random_columns(kind, k, 512, 6);
            let bands = bands(kind, &file);
            let mut case = Case::new(kind, Compute::Auto, &acts, file, &bands, &weights);
            case.check(0..n_rows, &columns, &mut scratch);
            case.check(0..n_rows, &[511], &mut scratch);
        }
    }
}

/// Packing on every set gives what the definition of the device form says, and unpacking gives the file's bytes.
#[test]
fn bands_are_the_rows_and_back() {
    for ty in types().filter(|ty| *ty != QuantType::F64) {
        let step = ty.info().rows;
        for (k, n_rows) in lengths(ty).into_iter().zip([33usize, 16, 5]) {
            let n_rows = n_rows.next_multiple_of(step);
            let data = random_matrix(ty, n_rows, k, 4);
            let file = Matrix::new(ty, n_rows, k, &data).expect("a matrix");
            let mut rows = file.data().to_vec();
            if ty.is_interleaved() {
                let group = data.len() / (n_rows / step);
                for (data, rows) in data.chunks_exact(group).zip(rows.chunks_exact_mut(group)) {
                    deinterleave_group(ty, data, k, rows).expect("whole groups");
                }
            }
            let form = lane_form(ty).expect("a type with a device form");
            let mut expected = vec![0; form.matrix_bytes(n_rows, k)];
            form.pack(&rows, k, &mut expected);
            for kind in available() {
                let bands = bands(kind, &file);
                assert!(bands == expected, "{ty} on {}, {n_rows} rows of {k}", kind.name());
            }
            let mut again = vec![0; file.data().len()];
            unpack(ty, k, &expected, &mut again);
            assert!(again == file.data(), "{ty}, {n_rows} rows of {k}");
        }
    }
}

/// Codes at the ends of what types hold, activations at theirs: no step may saturate.
#[test]
fn extreme_codes_do_not_saturate() {
    let mut scratch = Scratch::default();
    for ty in types().filter(|t| ikq_decode::facts(*t).is_some()) {
        let k = 512;
        let n_rows = 16;
        let plain = random_matrix(ty, n_rows, k, 9);
        for byte in [0x00, 0xff, 0x80, 0x7f, 0x88, 0x77, 0xf0] {
            // scales stay as they are where they stand apart from the codes; otherwise what is not finite goes
            let mut data = plain.clone();
            let row = data.len() / n_rows;
            for (i, b) in data.iter_mut().enumerate() {
                let code = match ty {
                    QuantType::I2_S => i < n_rows * k / 4,
                    QuantType::Q8_0 => i % 34 >= 2,
                    QuantType::IQ4_NL | QuantType::Q4_0 => i % 18 >= 2,
                    QuantType::Q8_K_R8 | QuantType::Q8_K_R16 | QuantType::Q8_KV_R8 => i % (row * 8) >= 64,
                    _ => i % row >= ty.info().row_header_bytes && !ty.is_interleaved(),
                };
                if code {
                    *b = byte;
                }
            }
            let weights = Weights::of(ty, &data, n_rows, k);
            if weights.values.iter().any(|v| v.abs().partial_cmp(&1e30) != Some(std::cmp::Ordering::Less)) {
                continue;
            }
            for kind in available() {
                let mut acts = Activations::default();
                acts.resize(k, 3);
                for (c, mut column) in acts.columns_mut().into_iter().enumerate() {
                    let sign = |i: usize| if c == 0 || c == 1 && i.is_multiple_of(2) { 1.0 } else { -1.0 };
                    for (i, x) in column.floats.iter_mut().enumerate() {
                        *x = sign(i) * 2.0;
                    }
                    column.quantize(kind);
                }
                let all = |c: usize, code| acts.units(c)[0].iter().all(|block| block.codes == [code; 32]);
                assert!(all(0, 127) && all(2, -127));
                let file = Matrix::new(ty, n_rows, k, &data).expect("a matrix");
                let bands = bands(kind, &file);
                let mut case = Case::new(kind, Compute::Auto, &acts, file, &bands, &weights);
                case.check(0..n_rows, &[0], &mut scratch);
                case.check(0..n_rows, &[1], &mut scratch);
                case.check(0..n_rows, &[2, 1, 0], &mut scratch);
            }
        }
    }
}

#[test]
fn activations_have_the_same_bytes_on_every_set() {
    for k in [32, 301, 768] {
        let scalar = random_columns(IsaKind::Scalar, k, 5, 8);
        for kind in available() {
            let acts = random_columns(kind, k, 5, 8);
            for c in 0..5 {
                assert_eq!(acts.debts(c), scalar.debts(c));
                let blocks = acts.units(c).as_flattened();
                for (a, b) in blocks.iter().zip(scalar.units(c).as_flattened()) {
                    assert_eq!((a.codes, a.start, a.starts), (b.codes, b.start, b.starts));
                    let bits = |v: &ActBlock| [v.d, v.sum, v.sums[0], v.sums[1]].map(f32::to_bits);
                    assert_eq!(bits(a), bits(b));
                }
                // codes are the nearest ones, and the sums theirs
                for (i, x) in acts.floats(c).iter().enumerate() {
                    let (code, d) = (f64::from(blocks[i / 32].codes[i % 32]), f64::from(blocks[i / 32].d));
                    let error = (f64::from(*x) - code * d).abs();
                    assert!(error <= 0.5 * d * (1.0 + 64.0 * HALF_ULP) + 1e-36, "{x} as {code} * {d}");
                }
                for (i, block) in blocks.iter().enumerate() {
                    let sum = |codes: &[i8]| codes.iter().map(|c| i32::from(*c)).sum::<i32>();
                    let halves = [sum(&block.codes[..16]), sum(&block.codes[16..])];
                    let (unit, b) = (acts.debts(c)[i / 8], i % 8);
                    assert_eq!(unit.per_16[2 * b..2 * b + 2], halves.map(|s| -128 * s));
                    assert_eq!(unit.per_32[b], -128 * (halves[0] + halves[1]));
                    assert_eq!(block.sums, halves.map(|s| block.d * s as f32));
                    assert_eq!(block.sum, block.d * (halves[0] + halves[1]) as f32);
                    // 1.5 * 2^23 as bits, and what the bias takes away
                    assert_eq!(f32::from_bits(block.start as u32), 12_582_912.0 + unit.per_32[b] as f32);
                    assert_eq!(
                        f32::from_bits(block.starts[0] as u32),
                        12_582_912.0 + unit.per_16[2 * b] as f32
                    );
                    assert_eq!(block.starts[1], unit.per_16[2 * b + 1]);
                }
            }
        }
    }
}

#[test]
fn the_check_of_a_machine_passes_and_has_a_name() {
    for ty in types() {
        for kind in available() {
            let worst = self_test(kind, ty).expect("rows of 768 elements");
            assert!(worst <= 1.0, "{ty} on {}: {worst} of the bound", kind.name());
            // floats of one size and integers are exact nowhere: nothing would have been compared
            assert!(worst > 0.0, "{ty} on {}", kind.name());
        }
    }
    assert_eq!(
        kernel_name(IsaKind::Avx2, QuantType::Q2_K_R4, Compute::Auto),
        "avx2: int8 products, scales per 16 with mins"
    );
    assert_eq!(kernel_name(IsaKind::Scalar, QuantType::Q4_K, Compute::F32), "scalar: float32 products");
}

/// A type whose rows have no plain twin is still a type of this test.
#[test]
fn the_list_of_types_is_whole() {
    let n_own = types().filter(|t| matches!(row_form(*t), Some(RowForm::Own { .. }))).count();
    assert_eq!(n_own, 5);
    assert!(types().count() > 70, "{} types", types().count());
}
