//! Carries out one unit of work: takes the source's bytes of some rows and makes the output's bytes.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use ikq_covariance::{Factors, NotPositive};
use ikq_encode::{EncodeOptions, encode_rows, is_ternary};
use ikq_formats::row::I2_S_TRAILER_BYTES;
use ikq_formats::{Family, QuantType};
use ikq_gguf::{Bytes, Tensor};
use ikq_simd::IsaKind;

use crate::covariance::{FactorCache, Feedback};
use crate::error::Error;
use crate::hash;
use crate::journal::Record;
use crate::measure::{Errors, measure};
use crate::plan::{Statistics, TensorPlan};
use crate::range::{Outside, Vanished, out_of_range, vanished};
use crate::units::{Rows, Unit, Work};

/// Working memory that travels between units, so that a run allocates a handful of buffers.
#[derive(Default)]
pub(crate) struct Buffers {
    floats: Mutex<Vec<Vec<f32>>>,
    bytes: Mutex<Vec<Vec<u8>>>,
}

/// Elements above which a buffer is not kept: a tensor that was one unit.
const LARGE: usize = 1 << 26;

fn take<T>(stash: &Mutex<Vec<Vec<T>>>) -> Vec<T> {
    stash.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
}

fn give<T>(stash: &Mutex<Vec<Vec<T>>>, buffer: Vec<T>) {
    if buffer.capacity() <= LARGE {
        stash.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

impl Buffers {
    /// Takes a result back when it has been written; pages of a source are let go of.
    pub fn recycle(&self, result: Payload) {
        match result {
            Payload::Buffer(bytes) => give(&self.bytes, bytes),
            Payload::Mapped(bytes) => bytes.release(),
        }
    }
}

/// The output bytes of a unit.
pub(crate) enum Payload {
    Buffer(Vec<u8>),
    /// The bytes of a file as they are.
    Mapped(Bytes),
}

impl std::ops::Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Payload::Buffer(bytes) => bytes,
            Payload::Mapped(bytes) => bytes,
        }
    }
}

/// Settings that all units of a run share.
#[derive(Clone, Copy)]
pub(crate) struct How<'a> {
    pub isa: IsaKind,
    pub encode: EncodeOptions,
    pub measure_errors: bool,
    /// Whether numbers that are too large for a type are cut off instead of refused.
    pub clamp: bool,
    /// The factors for error feedback; `None` if no covariances were given.
    pub factors: Option<&'a FactorCache>,
}

/// The bytes of a unit, and what was noticed while they were made.
pub(crate) struct Outcome {
    pub bytes: Payload,
    /// Whether the type is ternary and the weights are not.
    pub not_ternary: bool,
    /// Counts of non-zero weights that became zero because the type's scales are too coarse.
    pub vanished: Vanished,
    pub errors: Option<Errors>,
}

impl Outcome {
    /// The outcome of a unit that changes no number.
    fn exact(bytes: Payload) -> Outcome {
        Outcome { bytes, not_ternary: false, vanished: Vanished::default(), errors: None }
    }
}

/// Reads a unit's source and carries it out: the result, and what is to be noted of it (without its seconds).
///
/// # Errors
/// Those of the source, and of [`carry_out`].
pub(crate) fn work_off(
    unit: &Unit,
    (planned, t): (&TensorPlan, &Tensor),
    how: How<'_>,
    buffers: &Buffers,
) -> Result<(Payload, Record), Error> {
    let (source_hash, outcome) = match unit.work {
        Work::Encode { from, to, rows } if lies_in_rows(from) => {
            let mut x = take(&buffers.floats);
            let source_hash = decode_in_parts(from, unit.source.clone(), rows, t, how.isa, &mut x)?;
            let done = encode(to, rows, &x, (planned, t), how, buffers);
            give(&buffers.floats, x);
            (source_hash, done?)
        }
        _ => {
            let source = t.read(unit.source.clone())?;
            let outcome = carry_out(&unit.work, source.clone(), (planned, t), how, buffers)?;
            let source_hash = hash::of(&source);
            if let Payload::Buffer(_) = outcome.bytes {
                source.release();
            }
            (source_hash, outcome)
        }
    };
    let content = match &outcome.bytes {
        Payload::Mapped(_) => source_hash,
        Payload::Buffer(bytes) => hash::of(bytes),
    };
    let record = Record {
        source: source_hash,
        content,
        seconds: 0.0,
        not_ternary: outcome.not_ternary,
        vanished: outcome.vanished,
        errors: outcome.errors,
    };
    Ok((outcome.bytes, record))
}

/// The most bytes of a source that are read at a time: bytes that are made, or put in another order, need memory
/// until they are numbers.
const READ_AT_A_TIME: usize = 64 << 10;

/// Whether some rows of a type can be decoded without the others.
fn lies_in_rows(ty: QuantType) -> bool {
    !ty.is_interleaved() && ty != QuantType::I2_S
}

/// Decodes rows a few at a time, so that their bytes are not held while they are encoded. Returns the hash of the
/// bytes.
fn decode_in_parts(
    from: QuantType,
    source: Range<usize>,
    rows: Rows,
    t: &Tensor,
    isa: IsaKind,
    x: &mut Vec<f32>,
) -> Result<u64, Error> {
    x.resize(rows.n_rows * rows.n_per_row, 0.0);
    let row_bytes = ikq_formats::row_bytes(from, rows.n_per_row)?;
    let step = (READ_AT_A_TIME / row_bytes.max(1)).max(1);
    let mut hash = hash::OfParts::new();
    for first in (0..rows.n_rows).step_by(step) {
        let n_rows = step.min(rows.n_rows - first);
        let start = source.start + first * row_bytes;
        let bytes = t.read(start..start + n_rows * row_bytes)?;
        hash.part(&bytes);
        let x = &mut x[first * rows.n_per_row..][..n_rows * rows.n_per_row];
        ikq_decode::dequantize(isa, from, &bytes, n_rows, rows.n_per_row, x)?;
    }
    t.release(source);
    Ok(hash.end())
}

/// Carries out a unit.
///
/// # Errors
/// [`Error::TensorNotFinite`], [`Error::OutOfRange`].
pub(crate) fn carry_out(
    work: &Work,
    source: Bytes,
    (planned, t): (&TensorPlan, &Tensor),
    how: How<'_>,
    buffers: &Buffers,
) -> Result<Outcome, Error> {
    match *work {
        Work::Copy => Ok(Outcome::exact(Payload::Mapped(source))),
        Work::Repack { from, to, rows } => {
            let bytes = ikq_formats::repack(&source, from, to, rows.n_rows, rows.n_per_row)?;
            Ok(Outcome::exact(Payload::Buffer(bytes)))
        }
        Work::Encode { from, to, rows } => {
            let mut x = take(&buffers.floats);
            decode(from, &source, rows, t, how.isa, &mut x)?;
            let done = encode(to, rows, &x, (planned, t), how, buffers);
            give(&buffers.floats, x);
            done
        }
    }
}

/// The error of a result that is there already; `None` for a unit that is not encoded.
pub(crate) fn measure_again(
    work: &Work,
    source: &[u8],
    result: &[u8],
    (planned, t): (&TensorPlan, &Tensor),
    isa: IsaKind,
    buffers: &Buffers,
) -> Result<Option<Errors>, Error> {
    let Work::Encode { from, to, rows } = *work else { return Ok(None) };
    let (mut x, mut y) = (take(&buffers.floats), take(&buffers.floats));
    decode(from, source, rows, t, isa, &mut x)?;
    let importance = importance(planned, rows.matrix, rows.n_per_row);
    let errors = measure(isa, to, (&x, result), rows.n_per_row, importance, &mut y)?;
    give(&buffers.floats, x);
    give(&buffers.floats, y);
    Ok(Some(errors))
}

fn decode(
    from: QuantType,
    source: &[u8],
    rows: Rows,
    t: &Tensor,
    isa: IsaKind,
    x: &mut Vec<f32>,
) -> Result<(), Error> {
    x.resize(rows.n_rows * rows.n_per_row, 0.0);
    match from {
        QuantType::I2_S => ikq_decode::dequantize_i2_s(isa, source, i2_s_scale(t), x),
        _ => ikq_decode::dequantize(isa, from, source, rows.n_rows, rows.n_per_row, x)?,
    }
    Ok(())
}

fn encode(
    to: QuantType,
    rows: Rows,
    x: &[f32],
    (planned, t): (&TensorPlan, &Tensor),
    how: How<'_>,
    buffers: &Buffers,
) -> Result<Outcome, Error> {
    let Rows { n_rows, n_per_row, matrix, first_row } = rows;
    // a unit of I2_S has the rows of all matrices
    let place = |row: usize| {
        let (row, rows_per_matrix) = (first_row + row, t.ne[1] as usize);
        (matrix + row / rows_per_matrix, row % rows_per_matrix)
    };
    if let (false, Some(Outside { at, value, end })) = (how.clamp, out_of_range(to, x)) {
        let (tensor, (expert, row), column) = (planned.name.clone(), place(at / n_per_row), at % n_per_row);
        return Err(Error::OutOfRange { tensor, ty: to, expert, row, column, value, end });
    }
    let mut out = take(&buffers.bytes);
    out.resize(ikq_formats::matrix_bytes(to, n_rows, n_per_row)?, 0);
    let importance = importance(planned, matrix, n_per_row);
    let encoded = match factors(planned, matrix, how)? {
        Some(factors) => {
            assert_eq!(factors.k(), n_per_row, "covariances of another shape are refused");
            let x = factors.aimed(how.isa, x, first_row);
            ikq_feedback::encode_rows(how.isa, to, &x, importance, how.encode, &factors, &mut out)
        }
        None => encode_rows(how.isa, to, x, n_per_row, importance, how.encode, &mut out),
    };
    match encoded {
        Ok(()) => {}
        Err(ikq_encode::Error::NotFinite { row, column, value }) => {
            let (expert, row) = place(row);
            return Err(Error::TensorNotFinite { tensor: planned.name.clone(), expert, row, column, value });
        }
        Err(e) => return Err(e.into()),
    }
    let for_ternary = to.info().base.unwrap_or(to).info().family == Family::Ternary;
    let not_ternary = for_ternary && !x.chunks(n_per_row).all(is_ternary);
    let mut y = take(&buffers.floats);
    let errors = match how.measure_errors {
        true => Some(measure(how.isa, to, (x, &out), n_per_row, importance, &mut y)?),
        false => None,
    };
    let vanished = vanished(how.isa, to, (x, &out), n_per_row, &mut y)?;
    give(&buffers.floats, y);
    Ok(Outcome { bytes: Payload::Buffer(out), not_ternary, vanished, errors })
}

/// The factors of the covariance of a matrix's input; `None` where it is encoded without error feedback.
fn factors(planned: &TensorPlan, matrix: usize, how: How<'_>) -> Result<Option<Arc<Factors>>, Error> {
    let (Feedback::Site { index, group }, Some(cache)) = (planned.feedback, how.factors) else {
        return Ok(None);
    };
    cache.get(index, group.unwrap_or(matrix)).map_err(|NotPositive| Error::NotACovariance {
        tensor: planned.name.clone(),
        expert: matrix,
        path: cache.path().to_path_buf(),
    })
}

/// The scale of an I2_S tensor, which stands behind its rows.
fn i2_s_scale(t: &Tensor) -> f32 {
    // no tensor that is made has this type
    let trailer = t.data.len() - I2_S_TRAILER_BYTES;
    f32::from_le_bytes(t.data[trailer..].first_chunk().copied().expect("the reader has checked the size"))
}

/// The importance of a matrix's columns: its own, or the one that all matrices share.
fn importance(planned: &TensorPlan, matrix: usize, n_per_row: usize) -> Option<&[f32]> {
    match &planned.statistics {
        Statistics::Found { values, .. } => {
            let own = values.get(matrix * n_per_row..(matrix + 1) * n_per_row);
            Some(own.unwrap_or(values))
        }
        _ => None,
    }
}
