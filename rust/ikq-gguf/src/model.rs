//! [`Model`]: one file or a split set, which is mapped and checked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bytes::Bytes;
use crate::error::Error;
use crate::header::Header;
use crate::made::Made;
use crate::mapping::{map_file, map_open_file};
use crate::metadata::Metadata;
use crate::split;
use crate::tensor::{Tensor, TensorSpec, extents};
use crate::{DEFAULT_ALIGNMENT, WRITTEN_VERSION};

/// The number of files of a made model whose descriptors are kept; processes may often have 1024.
const MOST_OPEN: usize = 256;

/// A GGUF model that was opened, with the metadata of its first file and the tensors of all. Cloning is
/// cheap because clones share everything; views of tensor data outlive the model.
#[derive(Clone, Debug)]
pub struct Model {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shards: Vec<Shard>,
    tensors: Vec<Tensor>,
    /// Tensor indices in order of name.
    by_name: Vec<u32>,
}

/// One file of a model.
#[derive(Clone, Debug)]
pub struct Shard {
    pub path: PathBuf,
    pub version: u32,
    pub alignment: u64,
    /// All key-value pairs of this file, including the split keys.
    pub metadata: Metadata,
    pub n_tensors: usize,
    /// The bytes of the whole file.
    pub file: Bytes,
}

impl Model {
    /// Opens a file, or the whole split set when the file is a shard of one.
    ///
    /// The files are mapped and their descriptors closed: any number of shards can be open.
    ///
    /// # Errors
    /// IO errors with path; [`Error::Malformed`] with a [`crate::Fault`]; for split sets also
    /// [`Error::ShardMissing`], [`Error::ShardName`], [`Error::SplitKey`], [`Error::ShardTensors`],
    /// [`Error::ShardDuplicate`].
    pub fn open(path: impl AsRef<Path>) -> Result<Model, Error> {
        let path = path.as_ref();
        let opened = parse(path, map_file(path)?)?;
        let count = split::shard_count(path, &opened.1.metadata)?;
        if count == 1 {
            return Model::join(vec![opened]);
        }

        let paths = split::shard_paths(path, count)?;
        let mut tensors_of_all = None;
        let mut files = Vec::with_capacity(paths.len());
        for (index, shard_path) in (0u64..).zip(&paths) {
            let file = match map_file(shard_path) {
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    return Err(Error::ShardMissing {
                        path: shard_path.clone(),
                        opened: path.to_path_buf(),
                        number: index + 1,
                        count,
                    });
                }
                other => parse(shard_path, other?)?,
            };
            let said = split::check_shard(shard_path, &file.1, index, count)?;
            match (tensors_of_all, said) {
                (Some(expected), Some(found)) if expected != found => {
                    return Err(Error::SplitKey {
                        path: shard_path.clone(),
                        key: split::TENSORS,
                        found: found.to_string(),
                        expected: format!("{expected} as in the first shard"),
                    });
                }
                _ => tensors_of_all = tensors_of_all.or(said),
            }
            files.push(file);
        }
        let model = Model::join(files)?;
        match tensors_of_all {
            Some(expected) if expected != model.tensors().len() as u64 => Err(Error::ShardTensors {
                path: path.to_path_buf(),
                expected,
                found: model.tensors().len() as u64,
            }),
            _ => Ok(model),
        }
    }

    /// Opens only this file, even if it is a shard of a split set.
    ///
    /// # Errors
    /// As [`Model::open`] for a single file.
    pub fn open_file(path: impl AsRef<Path>) -> Result<Model, Error> {
        let path = path.as_ref();
        Model::join(vec![parse(path, map_file(path)?)?])
    }

    /// A model from the bytes of one file; error messages call it `name`.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn from_bytes(name: &str, bytes: impl Into<Bytes>) -> Result<Model, Error> {
        Model::join(vec![parse(Path::new(name), bytes.into())?])
    }

    /// A model that is not in a GGUF file, as when a checkpoint is converted. `files` are the files that it is made
    /// from; their sizes and times tell whether an interrupted run can be continued. `tensors` gets their bytes and
    /// gives each tensor with the source of its data.
    ///
    /// # Errors
    /// IO errors with path; [`Error::MadeSize`]; [`Error::PlanDims`] and [`Error::PlanShape`] for impossible shapes;
    /// [`Error::ShardDuplicate`] for two tensors of one name.
    pub fn of_made(
        files: &[PathBuf],
        metadata: Metadata,
        tensors: impl FnOnce(&[Bytes]) -> Result<Vec<(TensorSpec, Made)>, Error>,
    ) -> Result<Model, Error> {
        let open = |(number, path): (usize, &PathBuf)| match number < MOST_OPEN {
            true => map_open_file(path),
            false => map_file(path),
        };
        let mapped = files.iter().enumerate().map(open).collect::<Result<Vec<_>, _>>()?;
        let tensors = tensors(&mapped)?.into_iter().map(|(spec, made)| {
            let Some(ne) = extents(&spec.dims) else {
                return Err(Error::PlanDims { tensor: spec.name, dims: spec.dims });
            };
            if made.len() as u64 != spec.size {
                let (found, expected) = (made.len() as u64, spec.size);
                return Err(Error::MadeSize { tensor: spec.name, found, expected });
            }
            let n_dims = spec.dims.len() as u32;
            let (data, made) = (Bytes::from(Vec::new()), Some(made));
            Ok(Tensor { name: spec.name, ne, n_dims, ty: spec.ty, shard: 0, file_offset: 0, data, made })
        });
        let mut tensors = Some(tensors.collect::<Result<Vec<_>, _>>()?);
        let mut metadata = Some(metadata);
        let files = files.iter().zip(mapped).map(|(path, file)| {
            let tensors = tensors.take().unwrap_or_default();
            let shard = Shard {
                path: path.clone(),
                version: WRITTEN_VERSION,
                alignment: DEFAULT_ALIGNMENT,
                metadata: Metadata::new(),
                n_tensors: tensors.len(),
                file,
            };
            (shard, Header::of_made(metadata.take().unwrap_or_default(), tensors))
        });
        Model::join(files.collect())
    }

    fn join(files: Vec<(Shard, Header)>) -> Result<Model, Error> {
        let mut shards: Vec<Shard> = Vec::with_capacity(files.len());
        let mut tensors = Vec::new();
        for (index, (shard, header)) in (0u32..).zip(files) {
            let mut of_shard = header.tensors;
            of_shard.iter_mut().for_each(|t| t.shard = index);
            match tensors.is_empty() {
                true => tensors = of_shard,
                false => tensors.append(&mut of_shard),
            }
            shards.push(Shard { metadata: header.metadata, ..shard });
        }
        let mut by_name: Vec<u32> = (0..tensors.len() as u32).collect();
        by_name.sort_by_key(|i| tensors[*i as usize].name.as_str());
        for pair in by_name.windows(2) {
            let [a, b] = [pair[0], pair[1]].map(|i| &tensors[i as usize]);
            if a.name == b.name {
                return Err(Error::ShardDuplicate {
                    tensor: a.name.clone(),
                    first: shards[a.shard as usize].path.clone(),
                    second: shards[b.shard as usize].path.clone(),
                });
            }
        }
        Ok(Model { inner: Arc::new(Inner { shards, tensors, by_name }) })
    }

    /// This model without its metadata, for work that needs only tensors: those of a file are in the file, but a model
    /// that is made holds them in memory.
    #[must_use]
    pub fn without_metadata(&self) -> Model {
        let bare = |shard: &Shard| Shard { metadata: Metadata::new(), ..shard.clone() };
        let Inner { shards, tensors, by_name } = &*self.inner;
        let shards = shards.iter().map(bare).collect();
        Model { inner: Arc::new(Inner { shards, tensors: tensors.clone(), by_name: by_name.clone() }) }
    }

    /// This model, except that the tensors `names` are those of `other` (as views of its files). Metadata and the
    /// order of tensors stay.
    ///
    /// # Errors
    /// [`Error::NoTensor`] when one of the models has no tensor of one of these names.
    pub fn with_tensors_of<'a>(
        &self,
        other: &Model,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Model, Error> {
        let mut tensors = self.inner.tensors.clone();
        for name in names {
            let taken = other.require(name)?;
            let shard = self.require(name)?.shard;
            tensors[self.index(name).expect("just found")] = Tensor { shard, ..taken.clone() };
        }
        let (shards, by_name) = (self.inner.shards.clone(), self.inner.by_name.clone());
        Ok(Model { inner: Arc::new(Inner { shards, tensors, by_name }) })
    }

    /// Key-value pairs of the first file, in file order. In a split set these are the model's
    /// metadata, along with the split keys.
    pub fn metadata(&self) -> &Metadata {
        &self.inner.shards[0].metadata
    }

    /// All tensors in file order, shard after shard.
    pub fn tensors(&self) -> &[Tensor] {
        &self.inner.tensors
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.index(name).map(|i| &self.inner.tensors[i])
    }

    /// Index in [`Model::tensors`] of the tensor with this name.
    pub fn index(&self, name: &str) -> Option<usize> {
        let by_name = &self.inner.by_name;
        let found = by_name.binary_search_by_key(&name, |i| self.inner.tensors[*i as usize].name.as_str());
        found.ok().map(|k| by_name[k] as usize)
    }

    /// The tensor with this name.
    ///
    /// # Errors
    /// [`Error::NoTensor`], which suggests the most similar names.
    pub fn require(&self, name: &str) -> Result<&Tensor, Error> {
        self.tensor(name).ok_or_else(|| {
            let names = self.tensors().iter().map(|t| t.name.as_str());
            let near = names.filter(|n| n.len() <= 2 * name.len() + 8); // the search is quadratic in length
            let suggestions = ikq_formats::types::closest(name, near).into_iter().map(String::from).collect();
            Error::NoTensor { name: name.to_string(), suggestions }
        })
    }

    /// The files, first shard first.
    pub fn shards(&self) -> &[Shard] {
        &self.inner.shards
    }

    /// Bytes of all files together.
    pub fn total_size(&self) -> u64 {
        self.shards().iter().map(|s| s.file.len() as u64).sum()
    }
}

fn parse(path: &Path, file: Bytes) -> Result<(Shard, Header), Error> {
    let header =
        Header::parse(&file).map_err(|fault| Error::Malformed { path: path.to_path_buf(), fault })?;
    let shard = Shard {
        path: path.to_path_buf(),
        version: header.version,
        alignment: header.alignment,
        metadata: Metadata::new(), // moved in by `join`
        n_tensors: header.tensors.len(),
        file,
    };
    Ok((shard, header))
}
