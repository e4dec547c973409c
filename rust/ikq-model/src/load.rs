//! Where weights live while a model runs: in the mapped files, or copied to huge pages.
//!
//! Expert weights are read in scattered pieces, and a mapped file sits on 4 KiB pages; copying costs the time
//! of reading the file once, which must happen anyway. The copy is made in parallel and lets go of the file's pages on
//! the way, so that at no time two copies count as this process's memory. Groups of interleaved rows are taken
//! apart on the way where the rows are those of a plain type; in a mapping they are taken apart at every use.
//! With [`Repack`] it is the other way round: groups stay together, and plain rows are joined to groups.

use std::collections::{BTreeSet, HashMap};

use ikq_formats::{Family, QuantType, RowForm, deinterleave_group, interleave_group, matrix_bytes, row_form};
use ikq_gguf::{Bytes, Model, PageBuffer, Tensor};
use ikq_pool::{Cancel, Pool, Stop, available_memory};

use crate::error::Error;
use crate::repack::Repack;

/// What to do about the mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mmap {
    /// Copy where memory allows, else keep the mapping.
    Auto,
    /// Keep the mapping.
    On,
    /// Copy.
    Off,
}

/// A tensor's data where the engine reads it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub ty: QuantType,
    pub ne: [u64; 4],
    pub data: Bytes,
}

/// All tensors that a model names.
#[derive(Debug, Default)]
pub struct Tensors {
    by_name: HashMap<String, Loaded>,
    /// Bytes read from the mapping, and bytes copied to pages of this process.
    pub mapped_bytes: usize,
    pub copied_bytes: usize,
    /// Why they were copied or not.
    pub why: String,
}

/// Tensors start at multiples of this in the copy: a cache line.
const ALIGNMENT: usize = 64;
/// Bytes copied by one unit of work.
const UNIT: usize = 8 << 20;
/// Units that are read ahead of the one that is taken.
const AHEAD: usize = 4;
/// Share of the available memory that weights may take in `Auto`; the rest is for the cache and others.
const SHARE: f64 = 0.8;

impl Tensors {
    /// Loads the tensors called `names`.
    ///
    /// # Errors
    /// [`ikq_gguf::Error::NoTensor`], [`Error::Memory`] when a copy is asked for that memory does not hold.
    pub fn load(
        model: &Model,
        names: &BTreeSet<String>,
        mmap: Mmap,
        repack: Option<&Repack>,
        pool: &Pool,
        cancel: &Cancel,
    ) -> Result<Tensors, Stop<Error>> {
        let tensors: Vec<&Tensor> =
            names.iter().map(|name| model.require(name)).collect::<Result<_, _>>().map_err(Error::from)?;
        let needed = tensors.iter().map(|t| t.data.len().next_multiple_of(ALIGNMENT)).sum();
        let (copy, mut why) = match repack {
            // what is rewritten cannot stay in the file's mapping
            Some(_) => (true, String::new()),
            None => decide(mmap, needed),
        };
        let forms = tensors.iter().map(|t| form(t, copy, repack)).collect::<Result<Vec<_>, Error>>()?;
        if repack.is_some() {
            let n = forms.iter().filter(|f| f.change == Change::Together).count();
            why = format!("copied to huge pages, {n} of {} tensors repacked, as asked for", forms.len());
        }
        let data = match copy {
            true => copied(&tensors, &forms, needed, pool, cancel)?,
            false => tensors.iter().map(|t| t.data.clone()).collect(),
        };
        let mut loaded = Tensors { why, ..Tensors::default() };
        match copy {
            true => loaded.copied_bytes = needed,
            false => loaded.mapped_bytes = needed,
        }
        for ((t, form), data) in tensors.into_iter().zip(forms).zip(data) {
            loaded.by_name.insert(t.name.clone(), Loaded { ty: form.ty, ne: t.ne, data });
        }
        Ok(loaded)
    }

    /// The tensor of that name, which must have been among those loaded.
    ///
    /// # Errors
    /// [`Error::Spec`].
    pub fn get(&self, name: &str) -> Result<&Loaded, Error> {
        let missing = || Error::Spec { why: format!("`{name}` is not among the tensors to load") };
        self.by_name.get(name).ok_or_else(missing)
    }
}

/// Whether `needed` bytes of weights are copied, and why.
fn decide(mmap: Mmap, needed: usize) -> (bool, String) {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    match (mmap, available_memory()) {
        (Mmap::On, _) => (false, "mapped, as asked for".to_string()),
        (Mmap::Off, _) => (true, "copied to huge pages, as asked for".to_string()),
        (Mmap::Auto, None) => (false, "mapped: the system does not tell how much memory is free".to_string()),
        (Mmap::Auto, Some(free)) => {
            let (takes, has) = (gib(needed as u64), gib(free));
            match needed as f64 <= free as f64 * SHARE {
                true => {
                    (true, format!("copied to huge pages: {takes:.2} GiB of the {has:.2} GiB that are free"))
                }
                false => {
                    (false, format!("mapped: {takes:.2} GiB do not fit into {has:.2} GiB of free memory"))
                }
            }
        }
    }
}

/// What happens to rows on the way to their copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Nothing,
    /// Groups of interleaved rows are taken apart.
    Apart,
    /// Plain rows are joined to groups.
    Together,
}

/// What a tensor's bytes are once they are loaded.
struct Form {
    ty: QuantType,
    change: Change,
    /// The interleaved type, where there is a change.
    grouped: QuantType,
}

/// # Errors
/// [`Error::NotWeights`]; types that ikq does not know.
fn form(tensor: &Tensor, copy: bool, repack: Option<&Repack>) -> Result<Form, Error> {
    let ty = tensor.quant_type()?;
    let for_weights = |ty: QuantType| !matches!(ty.info().family, Family::Activation | Family::Integer);
    if !for_weights(ty) {
        return Err(Error::NotWeights { tensor: tensor.name.clone(), ty });
    }
    if let Some(repack) = repack {
        return Ok(match repack.to(tensor, ty) {
            Some(twin) => Form { ty: twin, change: Change::Together, grouped: twin },
            None => Form { ty, change: Change::Nothing, grouped: ty },
        });
    }
    Ok(match row_form(ty) {
        Some(RowForm::Plain(plain)) if copy && for_weights(plain) => {
            Form { ty: plain, change: Change::Apart, grouped: ty }
        }
        _ => Form { ty, change: Change::Nothing, grouped: ty },
    })
}

/// A piece of a tensor, and where its copy belongs.
struct Piece<'a> {
    tensor: &'a Tensor,
    form: &'a Form,
    source: Bytes,
    target: &'a mut [u8],
}

impl Piece<'_> {
    fn copy(&mut self) -> Result<(), Error> {
        type OfGroup = fn(QuantType, &[u8], usize, &mut [u8]) -> Result<(), ikq_formats::Error>;
        let change: OfGroup = match self.form.change {
            Change::Nothing => {
                self.target.copy_from_slice(&self.source);
                return Ok(());
            }
            Change::Apart => deinterleave_group,
            Change::Together => interleave_group,
        };
        let ty = self.form.grouped;
        let group = group_bytes(ty, self.tensor)?;
        for (from, to) in self.source.chunks_exact(group).zip(self.target.chunks_exact_mut(group)) {
            change(ty, from, self.tensor.ne[0] as usize, to)
                .map_err(|source| Error::Format { tensor: self.tensor.name.clone(), source })?;
        }
        Ok(())
    }
}

/// Bytes of the rows that are stored together.
fn group_bytes(ty: QuantType, tensor: &Tensor) -> Result<usize, Error> {
    matrix_bytes(ty, ty.info().rows, tensor.ne[0] as usize)
        .map_err(|source| Error::Format { tensor: tensor.name.clone(), source })
}

/// The tensors' bytes in one buffer.
fn copied(
    tensors: &[&Tensor],
    forms: &[Form],
    needed: usize,
    pool: &Pool,
    cancel: &Cancel,
) -> Result<Vec<Bytes>, Stop<Error>> {
    let refused = |e: std::io::Error| Error::Memory { needed, reason: e.to_string() };
    let mut buffer = PageBuffer::new(needed).map_err(refused)?;
    let mut pieces = Vec::new();
    let mut rest = buffer.as_mut_slice();
    for (tensor, form) in tensors.iter().zip(forms) {
        let len = tensor.data.len();
        let (target, behind) = rest.split_at_mut(len.next_multiple_of(ALIGNMENT).min(rest.len()));
        rest = behind;
        let unit = match form.change {
            Change::Nothing => UNIT,
            _ => UNIT.next_multiple_of(group_bytes(form.grouped, tensor)?.max(1)),
        };
        for (start, target) in (0..len).step_by(unit).zip(target[..len].chunks_mut(unit)) {
            let source = tensor.data.slice(start..start + target.len());
            pieces.extend(source.map(|source| Piece { tensor, form, source, target }));
        }
    }
    let sources: Vec<Bytes> = pieces.iter().map(|p| p.source.clone()).collect();
    sources.iter().take(AHEAD).for_each(Bytes::will_need);
    let units = pieces.into_iter().enumerate().map(|(i, piece)| {
        if let Some(ahead) = sources.get(i + AHEAD) {
            ahead.will_need();
        }
        piece
    });
    pool.for_each(units, cancel, |mut piece: Piece<'_>| {
        let done = piece.copy();
        piece.source.release();
        done
    })?;
    let all = buffer.freeze().map_err(refused)?;
    let mut at = 0;
    let mut slices = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let len = tensor.data.len();
        slices.extend(all.slice(at..at + len));
        at += len.next_multiple_of(ALIGNMENT);
    }
    Ok(slices)
}
