//! The header of a file: everything in front of the tensor data. It is checked against the file's size.
//!
//! A count in the file is not trusted when memory is allocated: it is refused when the remaining bytes
//! could not hold that many entries of the smallest size.

use crate::array::read_value;
use crate::bytes::Bytes;
use crate::cursor::Cursor;
use crate::error::Fault;
use crate::metadata::{Kv, Metadata};
use crate::tensor::{Tensor, TensorType, extents, tensor_bytes};
use crate::value::{Value, ValueType};
use crate::{DEFAULT_ALIGNMENT, MAX_DIMS, MAX_ENTRIES, WRITTEN_VERSION};

pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
/// Key of the alignment of tensor data.
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";

/// The smallest pair: key length, empty key, type, one byte of value.
const MIN_KV_BYTES: u64 = 8 + 4 + 1;
/// The smallest tensor entry: name length, empty name, n_dims, no dims, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 4 + 8;

/// A parsed file. All its tensors have shard number 0.
#[derive(Debug)]
pub(crate) struct Header {
    pub version: u32,
    pub alignment: u64,
    pub metadata: Metadata,
    pub tensors: Vec<Tensor>,
}

impl Header {
    /// The header of a model whose tensors are not in a GGUF file.
    pub fn of_made(metadata: Metadata, tensors: Vec<Tensor>) -> Header {
        Header { version: WRITTEN_VERSION, alignment: DEFAULT_ALIGNMENT, metadata, tensors }
    }
}

/// A tensor entry before its data is located.
struct Entry {
    /// Offset of the entry in the file.
    offset: u64,
    name: String,
    ne: [u64; 4],
    n_dims: u32,
    ty: TensorType,
    data_offset: u64,
}

impl Header {
    /// Parses and checks a whole file.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub(crate) fn parse(file: &Bytes) -> Result<Header, Fault> {
        let mut cursor = Cursor::new(file);
        let version = read_version(&mut cursor)?;

        let tensors_at = cursor.offset();
        let n_tensors = cursor.u64("the tensor count")?;
        let n_kv = cursor.count("key-value pairs", MIN_KV_BYTES, MAX_ENTRIES)?;

        let mut pairs = Vec::with_capacity(n_kv as usize);
        let mut offsets = Vec::with_capacity(n_kv as usize);
        for _ in 0..n_kv {
            offsets.push(cursor.offset());
            pairs.push(read_kv(&mut cursor, file)?);
        }
        if let Some(i) = first_duplicate(&pairs, Kv::key) {
            return Err(Fault::DuplicateKey { offset: offsets[i], key: pairs[i].key().to_string() });
        }
        let alignment = read_alignment(&pairs, &offsets)?;

        cursor.check_count(tensors_at, n_tensors, "tensors", MIN_TENSOR_BYTES, MAX_ENTRIES)?;
        let mut entries = Vec::with_capacity(n_tensors as usize);
        for _ in 0..n_tensors {
            entries.push(read_entry(&mut cursor)?);
        }
        if let Some(i) = first_duplicate(&entries, |e| &e.name) {
            let entry = entries.swap_remove(i);
            return Err(Fault::DuplicateTensor { offset: entry.offset, tensor: entry.name });
        }

        // a file offset rounded up to an alignment of at most 2^32 (`read_alignment`) does not overflow
        let data_start = cursor.offset().next_multiple_of(alignment);
        let tensors = locate(file, entries, data_start, alignment)?;
        Ok(Header { version, alignment, metadata: Metadata::from(pairs), tensors })
    }
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, Fault> {
    let found = cursor.array::<4>("the magic number")?;
    if found != MAGIC {
        return Err(Fault::Magic { found });
    }
    match cursor.u32("the version")? {
        version @ (2 | 3) => Ok(version),
        // real versions are small, so a number that is small with its bytes swapped shows a big-endian file
        version if version.swap_bytes() < 1 << 16 && version >= 1 << 16 => {
            Err(Fault::BigEndian { version: version.swap_bytes() })
        }
        version => Err(Fault::Version { version }),
    }
}

fn read_kv(cursor: &mut Cursor<'_>, file: &Bytes) -> Result<Kv, Fault> {
    let start = cursor.at();
    let key = cursor.name("a key")?.to_string();
    let offset = cursor.offset();
    let value = (|| {
        let id = cursor.u32("the value type")?;
        let ty = ValueType::from_id(id).ok_or(Fault::ValueType { offset, key: String::new(), id })?;
        read_value(cursor, file, ty, 0)
    })();
    let value = value.map_err(|fault| match fault {
        Fault::ValueType { offset, id, .. } => Fault::ValueType { offset, key: key.clone(), id },
        Fault::ArrayDepth { offset, max, .. } => Fault::ArrayDepth { offset, key: key.clone(), max },
        other => other.within(&key),
    })?;
    // the cursor has read these bytes, so the slice exists
    let raw = file.slice(start..cursor.at()).unwrap_or_else(|| Bytes::from(Vec::new()));
    Ok(Kv::from_file(key, value, raw))
}

fn read_alignment(pairs: &[Kv], offsets: &[u64]) -> Result<u64, Fault> {
    let Some(i) = pairs.iter().position(|kv| kv.key() == ALIGNMENT_KEY) else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    valid_alignment(pairs[i].value()).ok_or_else(|| Fault::Alignment {
        offset: offsets[i],
        found: format!("{:?}", pairs[i].value()).chars().take(80).collect(),
    })
}

/// A power of two from 8 to 2^32, which also is what ggml accepts.
pub(crate) fn valid_alignment(value: &Value) -> Option<u64> {
    value.as_u64().filter(|a| a.is_power_of_two() && (8..=1 << 32).contains(a))
}

fn read_entry(cursor: &mut Cursor<'_>) -> Result<Entry, Fault> {
    let offset = cursor.offset();
    let name = cursor.name("a tensor name")?.to_string();
    let fields = (|| {
        let n_dims = cursor.u32("the dimension count")?;
        if n_dims > MAX_DIMS {
            return Err(Fault::DimCount { offset, tensor: name.clone(), n_dims, max: MAX_DIMS });
        }
        let mut dims = [1; MAX_DIMS as usize];
        let dims = &mut dims[..n_dims as usize];
        for dim in dims.iter_mut() {
            *dim = cursor.u64("a dimension")?;
        }
        let too_many = || Fault::ElementCount { offset, tensor: name.clone(), dims: dims.to_vec() };
        let ne = extents(dims).ok_or_else(too_many)?;
        let ty = TensorType::from_id(cursor.u32("the tensor type")?);
        let data_offset = cursor.u64("the data offset")?;
        Ok((ne, n_dims, ty, data_offset))
    })();
    let (ne, n_dims, ty, data_offset) = fields.map_err(|fault| fault.within(&name))?;
    Ok(Entry { offset, name, ne, n_dims, ty, data_offset })
}

/// Finds the bytes of every tensor in the file. Sizes follow from shape and type; tensors of unknown types reach to
/// the next tensor or the end of the file.
fn locate(file: &Bytes, entries: Vec<Entry>, data_start: u64, alignment: u64) -> Result<Vec<Tensor>, Fault> {
    let file_len = file.len() as u64;
    let out_of_file = |e: &Entry, size: u64| Fault::TensorOutOfFile {
        tensor: e.name.clone(),
        begin: data_start.saturating_add(e.data_offset),
        size,
        file_len,
    };

    let mut begins = Vec::with_capacity(entries.len());
    for e in &entries {
        if !e.data_offset.is_multiple_of(alignment) {
            return Err(Fault::TensorMisaligned {
                tensor: e.name.clone(),
                data_offset: e.data_offset,
                alignment,
            });
        }
        begins.push(data_start.checked_add(e.data_offset).ok_or_else(|| out_of_file(e, 0))?);
    }
    let mut by_offset: Vec<u32> = (0..entries.len() as u32).collect();
    by_offset.sort_by_key(|i| (begins[*i as usize], *i));

    let mut sizes = vec![0u64; entries.len()];
    for (k, i) in by_offset.iter().map(|i| *i as usize).enumerate() {
        let next = by_offset.get(k + 1).map(|n| *n as usize);
        let (e, begin) = (&entries[i], begins[i]);
        let limit = next.map_or(file_len, |n| begins[n]);
        let size = match e.ty {
            TensorType::Known(ty) => tensor_bytes(ty, e.ne).map_err(|source| Fault::TensorShape {
                offset: e.offset,
                tensor: e.name.clone(),
                source,
            })?,
            TensorType::Unknown(_) => {
                let room = limit.min(file_len).saturating_sub(begin);
                // elements of any type take some bytes, so a tensor with elements needs at least one
                room.max(u64::from(!e.ne.contains(&0)))
            }
        };
        let end = begin.checked_add(size).filter(|end| *end <= file_len);
        // an empty tensor at the end of a file without padding may begin behind the end
        let end = end.or((size == 0).then_some(begin)).ok_or_else(|| out_of_file(e, size))?;
        if let Some(n) = next
            && end > limit
        {
            let [tensor, other] = [i, n].map(|t| entries[t].name.clone());
            return Err(Fault::TensorOverlap { offset: limit, tensor, other });
        }
        sizes[i] = size;
    }

    let located = entries.into_iter().zip(begins.into_iter().zip(sizes)).map(|(e, (begin, size))| {
        // in range as checked above; the one exception is an empty tensor behind the end
        let range = begin as usize..begin.saturating_add(size) as usize;
        let data = file.slice(range).unwrap_or_else(|| Bytes::from(Vec::new()));
        Tensor {
            name: e.name,
            ne: e.ne,
            n_dims: e.n_dims,
            ty: e.ty,
            shard: 0,
            file_offset: begin,
            data,
            made: None,
        }
    });
    Ok(located.collect())
}

/// Index of the first item that has the name of an earlier one.
fn first_duplicate<T>(items: &[T], name: impl Fn(&T) -> &str) -> Option<usize> {
    let mut order: Vec<u32> = (0..items.len() as u32).collect();
    order.sort_by(|a, b| name(&items[*a as usize]).cmp(name(&items[*b as usize])).then(a.cmp(b)));
    order
        .windows(2)
        .filter(|w| name(&items[w[0] as usize]) == name(&items[w[1] as usize]))
        .map(|w| w[1] as usize)
        .min()
}

#[cfg(test)]
mod tests;
