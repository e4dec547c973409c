//! [`Layout`]: the plan of an output, with the place of every byte, before any data exist.

use std::ops::Range;

use crate::array::Array;
use crate::error::Error;
use crate::header::{ALIGNMENT_KEY, MAGIC, valid_alignment};
use crate::metadata::{Metadata, encode_kv};
use crate::split::{self, is_split_key};
use crate::tensor::{TensorSpec, TensorType, extents, tensor_bytes};
use crate::value::Value;
use crate::{DEFAULT_ALIGNMENT, MAX_ENTRIES, MAX_NAME_BYTES, WRITTEN_VERSION};

/// How to divide the tensors among files. Order is kept, a tensor is never divided, and the first shard
/// holds the model's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SplitBy {
    /// Files of at most this many bytes, headers included; a tensor that is larger by itself gets a
    /// file of its own.
    MaxBytes(u64),
    /// At most this many tensors in a file.
    MaxTensors(usize),
    /// Exactly these numbers of tensors per file (0 is allowed), such as [`crate::Shard::n_tensors`] of a source.
    Counts(Vec<usize>),
}

/// Room in the header for numbers that are only known once the data are, such as hashes: an array of u64 under
/// `key` in every file, with `n_numbers` for each of its tensors. They are zero until
/// [`crate::Writer::set_per_tensor`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PerTensor {
    pub key: String,
    pub n_numbers: usize,
}

impl PerTensor {
    /// Bytes of the pair without its numbers.
    fn fixed_bytes(&self) -> u64 {
        encode_kv(&self.key, &Value::Array(Array::from(&[][..] as &[u64]))).len() as u64
    }
}

/// Choices of the writer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Alignment of tensor data; `None`: what `general.alignment` says, else 32.
    pub alignment: Option<u64>,
    /// How to split the output; `None`: one file.
    pub split: Option<SplitBy>,
    /// Let the first shard hold only metadata. This is ignored for [`SplitBy::Counts`], where the first count can
    /// be 0.
    pub no_tensor_first_split: bool,
    /// Room for numbers that are known once the data are; a pair with their key in the metadata is replaced.
    pub per_tensor: Option<PerTensor>,
}

/// Where a tensor's data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the file.
    pub shard: usize,
    /// Offset of the data from the start of that file.
    pub offset: u64,
    /// Bytes of data; zeros follow up to the alignment.
    pub size: u64,
}

/// One file of the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardLayout {
    /// Everything in front of the tensor data, without the padding that follows.
    pub header: Vec<u8>,
    /// Bytes of the file.
    pub size: u64,
    /// Indices of the tensors that the file holds.
    pub tensors: Range<usize>,
    /// Offset in the header of the numbers of [`Options::per_tensor`].
    pub per_tensor: Option<usize>,
}

/// All offsets and sizes of an output. [`crate::Writer`] writes it; a dry run needs nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    tensors: Vec<TensorSpec>,
    places: Vec<Place>,
    shards: Vec<ShardLayout>,
    is_split: bool,
    /// Numbers per tensor in the header.
    n_numbers: usize,
}

impl Layout {
    /// Plans an output of `metadata` (whose pairs are copied byte for byte, except that split keys
    /// are replaced) and `tensors` in this order.
    ///
    /// # Errors
    /// The `Plan...` variants of [`Error`].
    pub fn new(metadata: &Metadata, tensors: Vec<TensorSpec>, options: &Options) -> Result<Layout, Error> {
        check_counts(metadata, &tensors)?;
        check_keys(metadata)?;
        check_tensors(&tensors)?;
        let (pairs, alignment) = first_pairs(metadata, options)?;
        let rest = match alignment {
            DEFAULT_ALIGNMENT => Vec::new(),
            other => vec![alignment_pair(other)],
        };
        let is_split = options.split.is_some();
        let maker = ShardMaker {
            pairs: [pairs, rest],
            alignment,
            is_split,
            n_tensors: tensors.len(),
            per_tensor: options.per_tensor.clone(),
        };
        let ranges = divide(&tensors, &maker, options)?;
        if ranges.len() > usize::from(u16::MAX) {
            let max = u16::MAX.into();
            return Err(Error::PlanCount { what: "shards", count: ranges.len() as u64, max });
        }

        let mut places = Vec::with_capacity(tensors.len());
        let mut shards = Vec::with_capacity(ranges.len());
        let n_shards = ranges.len();
        for (index, range) in ranges.into_iter().enumerate() {
            shards.push(maker.shard(&tensors, index, n_shards, range, &mut places)?);
        }
        let n_numbers = options.per_tensor.as_ref().map_or(0, |p| p.n_numbers);
        let layout = Layout { tensors, places, shards, is_split, n_numbers };
        layout.shards.iter().try_fold(0, |sum, s| add(sum, s.size))?;
        Ok(layout)
    }

    /// Bytes of all files together, exactly as the writer makes them.
    pub fn total_size(&self) -> u64 {
        self.shards.iter().map(|s| s.size).sum() // `new` has checked that it fits
    }

    /// The tensors, in the order given.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// Where the tensors go, in the same order.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The files.
    pub fn shards(&self) -> &[ShardLayout] {
        &self.shards
    }

    /// Numbers per tensor that the headers have room for.
    pub fn n_numbers(&self) -> usize {
        self.n_numbers
    }

    /// Whether the files are named and marked as shards (also if there is only one).
    pub fn is_split(&self) -> bool {
        self.is_split
    }
}

/// Makes the headers of all shards.
struct ShardMaker {
    /// Encoded pairs of the first shard and of the others, split keys not included.
    pairs: [Vec<Vec<u8>>; 2],
    alignment: u64,
    is_split: bool,
    n_tensors: usize,
    per_tensor: Option<PerTensor>,
}

impl ShardMaker {
    fn split_pairs(&self, index: usize, count: usize) -> Vec<Vec<u8>> {
        if !self.is_split {
            return Vec::new();
        }
        // the types are those that the reference programs write; the casts fit, because `Layout::new` checks the
        // counts
        vec![
            encode_kv(split::NO, &Value::U16(index as u16)),
            encode_kv(split::COUNT, &Value::U16(count as u16)),
            encode_kv(split::TENSORS, &Value::I32(self.n_tensors as i32)),
        ]
    }

    /// Bytes of the header of shard `index` before its tensor entries.
    fn head_bytes(&self, index: usize) -> u64 {
        let pairs = &self.pairs[index.min(1)];
        let bytes = |pairs: &[Vec<u8>]| pairs.iter().map(|p| p.len() as u64).sum::<u64>();
        let room = self.per_tensor.as_ref().map_or(0, PerTensor::fixed_bytes);
        24 + bytes(pairs) + bytes(&self.split_pairs(index, 1)) + room
    }

    /// Bytes that a tensor adds to the header.
    fn entry_bytes(&self, t: &TensorSpec) -> u64 {
        let numbers = self.per_tensor.as_ref().map_or(0, |p| 8 * p.n_numbers);
        (8 + t.name.len() + 4 + 8 * t.dims.len() + 4 + 8 + numbers) as u64
    }

    fn shard(
        &self,
        tensors: &[TensorSpec],
        index: usize,
        count: usize,
        range: Range<usize>,
        places: &mut Vec<Place>,
    ) -> Result<ShardLayout, Error> {
        let split_pairs = self.split_pairs(index, count);
        let pairs = &self.pairs[index.min(1)];
        let mut header = MAGIC.to_vec();
        header.extend(WRITTEN_VERSION.to_le_bytes());
        header.extend((range.len() as u64).to_le_bytes());
        let n_pairs = pairs.len() + split_pairs.len() + usize::from(self.per_tensor.is_some());
        header.extend((n_pairs as u64).to_le_bytes());
        for pair in pairs.iter().chain(&split_pairs) {
            header.extend_from_slice(pair);
        }
        let per_tensor = self.per_tensor.as_ref().map(|room| {
            let zeros = vec![0u64; room.n_numbers * range.len()];
            header.extend(encode_kv(&room.key, &Value::Array(Array::from(&zeros[..]))));
            header.len() - 8 * zeros.len()
        });
        let first_place = places.len();
        let mut offset = 0u64;
        for t in &tensors[range.clone()] {
            header.extend((t.name.len() as u64).to_le_bytes());
            header.extend_from_slice(t.name.as_bytes());
            header.extend((t.dims.len() as u32).to_le_bytes());
            t.dims.iter().for_each(|d| header.extend(d.to_le_bytes()));
            header.extend(t.ty.id().to_le_bytes());
            header.extend(offset.to_le_bytes());
            places.push(Place { shard: index, offset, size: t.size });
            offset = add(offset, padded(t.size, self.alignment)?)?;
        }
        let data_start = padded(header.len() as u64, self.alignment)?;
        let size = add(data_start, offset)?;
        // the system has signed file offsets
        i64::try_from(size).map_err(|_| Error::PlanTooLarge)?;
        places[first_place..].iter_mut().for_each(|p| p.offset += data_start);
        Ok(ShardLayout { header, size, tensors: range, per_tensor })
    }
}

/// Divides the tensors among shards; the result has the range of each shard.
fn divide(tensors: &[TensorSpec], maker: &ShardMaker, options: &Options) -> Result<Vec<Range<usize>>, Error> {
    let n = tensors.len();
    let mut ranges: Vec<Range<usize>> = Vec::new();
    if options.no_tensor_first_split && !matches!(options.split, Some(SplitBy::Counts(_))) {
        ranges.push(0..0);
    }
    match &options.split {
        None => return Ok(std::iter::once(0..n).collect()),
        Some(SplitBy::MaxBytes(0) | SplitBy::MaxTensors(0)) => {
            return Err(Error::PlanSplit { why: "a shard needs room for at least one byte or tensor" });
        }
        Some(SplitBy::MaxTensors(max)) => {
            ranges.extend((0..n).step_by(*max).map(|begin| begin..n.min(begin.saturating_add(*max))));
        }
        Some(SplitBy::Counts(counts)) => {
            let mut begin = 0usize;
            for count in counts {
                let end = begin.saturating_add(*count);
                ranges.push(begin..end);
                begin = end;
            }
            if begin != n {
                return Err(Error::PlanSplit {
                    why: "the tensors of the shards do not add up to all tensors",
                });
            }
        }
        Some(SplitBy::MaxBytes(max)) => {
            let (mut begin, mut head, mut data) = (0, maker.head_bytes(ranges.len()), 0);
            for (i, t) in tensors.iter().enumerate() {
                let size = padded(t.size, maker.alignment)?;
                let with = add(padded(add(head, maker.entry_bytes(t))?, maker.alignment)?, add(data, size)?)?;
                if with > *max && i > begin {
                    ranges.push(begin..i);
                    (begin, head, data) = (i, maker.head_bytes(ranges.len()), 0);
                }
                head = add(head, maker.entry_bytes(t))?;
                data = add(data, size)?;
            }
            if begin < n {
                ranges.push(begin..n);
            }
        }
    }
    if ranges.is_empty() {
        ranges.push(0..0); // metadata needs a file
    }
    Ok(ranges)
}

/// The encoded pairs of the model, without split keys and with the key of the alignment where it is needed, and the
/// alignment.
fn first_pairs(metadata: &Metadata, options: &Options) -> Result<(Vec<Vec<u8>>, u64), Error> {
    let key = metadata.get(ALIGNMENT_KEY);
    let valid =
        |v: &Value| valid_alignment(v).ok_or_else(|| Error::PlanAlignment { alignment: format!("{v:.80}") });
    let alignment = match (options.alignment, key) {
        (Some(a), _) => valid(&Value::U64(a))?,
        (None, Some(v)) => valid(v)?,
        (None, None) => DEFAULT_ALIGNMENT,
    };
    let keeps = key.and_then(valid_alignment) == Some(alignment);
    let mut pairs: Vec<Vec<u8>> = Vec::with_capacity(metadata.len());
    let replaced = options.per_tensor.as_ref().map(|p| p.key.as_str());
    for kv in metadata.iter().filter(|kv| !is_split_key(kv.key()) && Some(kv.key()) != replaced) {
        match kv.key() == ALIGNMENT_KEY && !keeps {
            true => pairs.push(alignment_pair(alignment)),
            false => pairs.push(kv.raw().to_vec()),
        }
    }
    if key.is_none() && alignment != DEFAULT_ALIGNMENT {
        pairs.push(alignment_pair(alignment));
    }
    Ok((pairs, alignment))
}

fn alignment_pair(alignment: u64) -> Vec<u8> {
    match u32::try_from(alignment) {
        Ok(a) => encode_kv(ALIGNMENT_KEY, &Value::U32(a)),
        Err(_) => encode_kv(ALIGNMENT_KEY, &Value::U64(alignment)),
    }
}

fn check_counts(metadata: &Metadata, tensors: &[TensorSpec]) -> Result<(), Error> {
    // the alignment, the split keys and the numbers per tensor may come on top
    for (what, count) in [("key-value pairs", metadata.len() + 5), ("tensors", tensors.len())] {
        if count as u64 > MAX_ENTRIES {
            return Err(Error::PlanCount { what, count: count as u64, max: MAX_ENTRIES });
        }
    }
    Ok(())
}

fn check_keys(metadata: &Metadata) -> Result<(), Error> {
    let mut keys: Vec<&str> = metadata.iter().map(|kv| kv.key()).collect();
    keys.iter().try_for_each(|k| check_name(k))?;
    keys.sort_unstable();
    match keys.windows(2).find(|w| w[0] == w[1]) {
        Some(w) => Err(Error::PlanDuplicateKey { key: w[0].to_string() }),
        None => Ok(()),
    }
}

fn check_tensors(tensors: &[TensorSpec]) -> Result<(), Error> {
    for t in tensors {
        check_name(&t.name)?;
        let ne = extents(&t.dims)
            .ok_or_else(|| Error::PlanDims { tensor: t.name.clone(), dims: t.dims.clone() })?;
        if let TensorType::Known(ty) = t.ty {
            let expected =
                tensor_bytes(ty, ne).map_err(|source| Error::PlanShape { tensor: t.name.clone(), source })?;
            if expected != t.size {
                return Err(Error::PlanSize { tensor: t.name.clone(), expected, size: t.size });
            }
        }
    }
    let mut names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|w| w[0] == w[1]) {
        Some(w) => Err(Error::PlanDuplicateTensor { tensor: w[0].to_string() }),
        None => Ok(()),
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    match name.len() as u64 <= MAX_NAME_BYTES {
        true => Ok(()),
        false => Err(Error::PlanName { name: name.to_string(), max: MAX_NAME_BYTES }),
    }
}

fn padded(size: u64, alignment: u64) -> Result<u64, Error> {
    size.checked_next_multiple_of(alignment).ok_or(Error::PlanTooLarge)
}

fn add(a: u64, b: u64) -> Result<u64, Error> {
    a.checked_add(b).ok_or(Error::PlanTooLarge)
}

#[cfg(test)]
mod tests;
