//! Activation statistics (imatrix data and covariances): collecting them while an engine runs, and reading and
//! writing their files.

use std::path::PathBuf;
use std::sync::Arc;

use ikq_covariance::triangle;
use ikq_model::covariance::{CovarianceCollector, InputReader, InputSums, Products};
use ikq_model::statistics::{CollectOptions, Collector, Entry, Owner, Similarity, Site};
use ikq_pool::Stop;
use ikq_quantize::covariance::{
    Covariances, Cross, Reader, SiteSums, Written, merge, origin, restore, write,
};
use ikq_quantize::imatrix::{Form, SumEntry, Sums};
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::exceptions::{PyIndexError, PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::enter::enter;
use crate::gguf::Model;
use crate::simd::isa;

/// Collects activation statistics of the engines that it is attached to.
#[pyclass(frozen, module = "ikq._ikq")]
pub struct StatisticsCollector {
    pub inner: Arc<Collector>,
}

/// An entry of an imatrix: its name, the sums of squares `[experts, columns]`, and the token counts.
type EntryArrays<'py> = (String, Bound<'py, PyArray2<f64>>, Bound<'py, PyArray1<u64>>);
/// An input of weights: for each tensor that reads it the names and whether they are pooled, then the sums of
/// squares `[groups, columns]`, and the token counts of the groups.
type SiteArrays<'py> = (Vec<(Vec<String>, bool)>, Bound<'py, PyArray2<f64>>, Bound<'py, PyArray1<u64>>);
type SiteRead<'py> = (Vec<(Vec<String>, bool)>, PyReadonlyArray2<'py, f64>, PyReadonlyArray1<'py, u64>);

fn matrix<'py>(py: Python<'py>, sums: Vec<f64>, n: usize) -> PyResult<Bound<'py, PyArray2<f64>>> {
    let columns = sums.len() / n.max(1);
    PyArray1::from_vec(py, sums).reshape([n, columns])
}

#[pymethods]
impl StatisticsCollector {
    #[new]
    #[pyo3(signature = (*, all_experts, similarity, output, choices, covariance_layers=None, n_threads=None))]
    fn new(
        all_experts: bool,
        similarity: bool,
        output: bool,
        choices: bool,
        covariance_layers: Option<(usize, usize)>,
        n_threads: Option<usize>,
    ) -> PyResult<StatisticsCollector> {
        let options = CollectOptions { all_experts, similarity, output, choices };
        let inner = match covariance_layers {
            None => Collector::new(options),
            Some((first, end)) => {
                let covariances = CovarianceCollector::new(first..end, isa(None)?, n_threads.unwrap_or(0))
                    .map_err(|e| PyOSError::new_err(e.to_string()))?;
                Collector::with_covariances(options, covariances)
            }
        };
        Ok(StatisticsCollector { inner: Arc::new(inner) })
    }

    /// Writes the collected covariances to a file; does nothing when none are collected.
    #[expect(clippy::too_many_arguments, reason = "what the file says of its origin, named in Python")]
    fn write_covariances(
        &self,
        py: Python<'_>,
        path: PathBuf,
        datasets: Vec<String>,
        n_chunks: u32,
        chunk_size: u32,
        origin: Option<String>,
        identity: Option<String>,
    ) -> PyResult<()> {
        let inner = self.inner.clone();
        let about = Written { datasets, n_chunks, chunk_size, origin, identity };
        enter(py, usize::MAX, |_| {
            let Some(covariances) = inner.covariances() else { return Ok(()) };
            covariances.look(|inputs| {
                let sites: Vec<SiteSums<'_>> = inputs.iter().map(written).collect();
                write(&path, &sites, &about).map_err(Stop::Failed)
            })
        })
    }

    /// Loads the covariances of a file, so that collecting continues from them.
    fn restore_covariances(&self, py: Python<'_>, file: &CovarianceFile) -> PyResult<()> {
        py.detach(|| {
            if let Some(covariances) = self.inner.covariances() {
                let inputs = restore(&file.inner).map(|(site, sums)| {
                    let reader = |r: &Reader| InputReader { tensor: r.tensor.clone(), group: r.group };
                    let readers = site.readers.iter().map(reader).collect();
                    let counts = site.counts.iter().map(|n| *n as u64).collect();
                    InputSums::new(readers, site.k, counts, sums, site.starts.clone())
                });
                covariances.restore(inputs.collect());
            }
        });
        Ok(())
    }

    /// Adds what was collected since the last call to the totals.
    ///
    /// `wanted` is a collector that saw the same steps with the inputs that are wanted, such as those of the
    /// unquantized model. With it, the products of the differences and the own inputs are added up, too, and
    /// `wanted` discards what it collected. `products` are names of tensors, and what the products with these
    /// lack, `[tokens, rows]`, of a chunk that was a single step: that counts for them then, and not what their
    /// inputs lack.
    #[pyo3(signature = (wanted=None, products=None))]
    fn commit(
        &self,
        py: Python<'_>,
        wanted: Option<&StatisticsCollector>,
        products: Option<(Vec<String>, PyReadonlyArray2<'_, f32>)>,
    ) -> PyResult<()> {
        match wanted {
            Some(wanted) if Arc::ptr_eq(&wanted.inner, &self.inner) => {
                return Err(PyValueError::new_err("a collector cannot want what it has met itself"));
            }
            Some(wanted) => {
                let products = products.as_ref();
                let products = products.map(|(tensors, missing)| {
                    let n_rows = missing.as_array().ncols();
                    missing.as_slice().map(|missing| Products { tensors, n_rows, missing })
                });
                let products = products.transpose()?;
                py.detach(|| self.inner.commit_for(&wanted.inner, products));
            }
            None => py.detach(|| self.inner.commit()),
        }
        Ok(())
    }

    /// Discards what was collected since the last `commit`.
    fn discard(&self, py: Python<'_>) {
        py.detach(|| self.inner.discard());
    }

    /// The imatrix entries, one per tensor, in the order in which the tensors were first used.
    fn entries<'py>(&self, py: Python<'py>) -> PyResult<Vec<EntryArrays<'py>>> {
        let entries = py.detach(|| self.inner.entries());
        let arrays = |Entry { name, sums, counts }| {
            let n = counts.len();
            Ok((name, matrix(py, sums, n)?, PyArray1::from_vec(py, counts)))
        };
        entries.into_iter().map(arrays).collect()
    }

    /// For each router (by the name of its tensor) the experts that each token was sent to.
    fn choices(&self) -> Vec<(String, Vec<Vec<u32>>)> {
        self.inner.choices()
    }

    /// For each layer the sums over tokens of the cosine similarity between input and output (of the whole layer,
    /// of its attention, and of its FFN), and the number of tokens in these sums.
    fn similarity(&self) -> (Vec<[f64; 3]>, u64) {
        let found = self.inner.similarity();
        (found.layers, found.n_tokens)
    }

    /// Everything that `restore` needs to continue later: the inputs with the tensors that read them, and the two
    /// values of `similarity`.
    fn state<'py>(&self, py: Python<'py>) -> PyResult<(Vec<SiteArrays<'py>>, Vec<[f64; 3]>, u64)> {
        let (sites, similarity) = py.detach(|| self.inner.sites());
        let arrays = |Site { owners, sums, counts, .. }: Site| {
            let n = counts.len();
            let owners = owners.into_iter().map(|o| (o.names, o.pooled)).collect();
            Ok((owners, matrix(py, sums, n)?, PyArray1::from_vec(py, counts)))
        };
        let sites = sites.into_iter().map(arrays).collect::<PyResult<Vec<_>>>()?;
        Ok((sites, similarity.layers, similarity.n_tokens))
    }

    /// Loads what `state` returned, so that collecting continues from it.
    fn restore(&self, sites: Vec<SiteRead<'_>>, layers: Vec<[f64; 3]>, n_tokens: u64) -> PyResult<()> {
        let mut all = Vec::with_capacity(sites.len());
        for (owners, sums, counts) in &sites {
            let (n_groups, k) = sums.as_array().dim();
            let counts = counts.as_slice()?.to_vec();
            if counts.len() != n_groups || owners.iter().any(|(names, _)| names.is_empty()) {
                return Err(PyValueError::new_err("a state whose parts do not fit together"));
            }
            let owners = owners
                .iter()
                .map(|(names, pooled)| Owner { names: names.clone(), pooled: *pooled })
                .collect();
            all.push(Site { owners, k, sums: sums.as_slice()?.to_vec(), counts });
        }
        self.inner.restore(all, Similarity { layers, n_tokens });
        Ok(())
    }
}

/// Converts the sums of an input to the form in which a file stores them.
fn written(input: &InputSums) -> SiteSums<'_> {
    let reader = |r: &InputReader| Reader { tensor: r.tensor.clone(), group: r.group };
    let n = triangle(input.k);
    SiteSums {
        readers: input.readers.iter().map(reader).collect(),
        k: input.k,
        counts: input.counts.iter().map(|n| *n as f32).collect(),
        group: Box::new(move |group| match input.sums[group].as_slice() {
            [] => vec![0.0; n],
            sums => sums.to_vec(),
        }),
        cross: input.cross.iter().any(|c| !c.is_empty()).then(|| -> Cross<'_> {
            let of_group = |group: usize| match input.cross[group].as_slice() {
                [] => vec![0.0; input.missing.n_rows(input.k) * input.k],
                sums => sums.to_vec(),
            };
            (input.missing, Box::new(of_group))
        }),
        starts: input.starts.clone(),
    }
}

/// A covariance file that is open for reading.
#[pyclass(frozen, module = "ikq._ikq")]
pub struct CovarianceFile {
    inner: Covariances,
}

/// The tensors with the group that each reads, the token counts, the lower triangles `[groups, elements]`, and of the
/// first tokens of texts the groups that they reached and what they were, `[tokens, columns]`.
type SiteTriangles<'py> = (
    Vec<(String, Option<usize>)>,
    Bound<'py, PyArray1<f32>>,
    Bound<'py, PyArray2<f32>>,
    Bound<'py, PyArray1<u32>>,
    Bound<'py, PyArray2<f32>>,
);

#[pymethods]
impl CovarianceFile {
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<CovarianceFile> {
        let opened = enter(py, usize::MAX, |_| Covariances::open(&path).map_err(Stop::Failed));
        opened.map(|inner| CovarianceFile { inner })
    }

    #[getter]
    fn datasets(&self) -> Vec<String> {
        self.inner.datasets.clone()
    }

    #[getter]
    fn n_chunks(&self) -> u32 {
        self.inner.n_chunks
    }

    #[getter]
    fn chunk_size(&self) -> u32 {
        self.inner.chunk_size
    }

    #[getter]
    fn origin(&self) -> Option<String> {
        self.inner.origin.clone()
    }

    #[getter]
    fn identity(&self) -> Option<String> {
        self.inner.identity.clone()
    }

    #[getter]
    fn n_sites(&self) -> usize {
        self.inner.sites.len()
    }

    /// The covariance matrices of one input.
    fn site<'py>(&self, py: Python<'py>, index: usize) -> PyResult<SiteTriangles<'py>> {
        let found = restore(&self.inner).nth(index);
        let (site, sums) = found.ok_or_else(|| PyIndexError::new_err(format!("there is no site {index}")))?;
        let readers = site.readers.iter().map(|r| (r.tensor.clone(), r.group)).collect();
        let n = sums.len();
        let sums = PyArray1::from_vec(py, sums.concat());
        let columns = sums.len()? / n.max(1);
        let groups = PyArray1::from_slice(py, &site.starts.groups);
        let starts =
            PyArray1::from_slice(py, &site.starts.met).reshape([site.starts.groups.len(), site.k])?;
        Ok((readers, PyArray1::from_slice(py, &site.counts), sums.reshape([n, columns])?, groups, starts))
    }
}

/// The text by which a covariance file identifies the model that it was collected from.
#[pyfunction]
pub fn model_origin(model: &Model) -> Option<String> {
    origin(&model.inner)
}

/// Adds up covariance files that were collected from the same model, and writes the sum to `out`.
#[pyfunction]
pub fn merge_covariances(py: Python<'_>, paths: Vec<PathBuf>, out: PathBuf) -> PyResult<()> {
    enter(py, usize::MAX, |_| merge(&paths, &out).map_err(Stop::Failed))
}

/// An entry of an imatrix file: its name, the sums of squares `[experts, columns]` and the counts, as they are
/// stored.
type FileEntry<'py> = (String, Bound<'py, PyArray2<f32>>, Bound<'py, PyArray1<f32>>);
type FileEntryRead<'py> = (String, PyReadonlyArray2<'py, f64>, PyReadonlyArray1<'py, f32>);

/// An imatrix file with its sums and counts as they are stored.
#[pyclass(frozen, module = "ikq._ikq")]
pub struct StatisticsFile {
    inner: Sums,
}

#[pymethods]
impl StatisticsFile {
    /// Reads a `.dat` or a GGUF imatrix.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<StatisticsFile> {
        let opened = enter(py, usize::MAX, |_| {
            Sums::open(&path).map_err(|e| Stop::Failed(ikq_quantize::Error::from(e)))
        });
        opened.map(|inner| StatisticsFile { inner })
    }

    #[getter]
    fn datasets(&self) -> Vec<String> {
        self.inner.datasets.clone()
    }

    #[getter]
    fn n_chunks(&self) -> Option<u32> {
        self.inner.n_chunks
    }

    #[getter]
    fn chunk_size(&self) -> Option<u32> {
        self.inner.chunk_size
    }

    #[getter]
    fn all_experts(&self) -> bool {
        self.inner.all_experts
    }

    /// Whether the counts are numbers of chunks, one for all experts of a tensor, instead of numbers of tokens.
    #[getter]
    fn counts_are_calls(&self) -> bool {
        self.inner.counts_are_calls
    }

    fn entries<'py>(&self, py: Python<'py>) -> PyResult<Vec<FileEntry<'py>>> {
        let arrays = |e: &SumEntry| {
            let n = e.counts.len().max(1);
            let sums = PyArray1::from_slice(py, &e.sums).reshape([n, e.sums.len() / n])?;
            Ok((e.name.clone(), sums, PyArray1::from_slice(py, &e.counts)))
        };
        self.inner.entries.iter().map(arrays).collect()
    }
}

/// Writes an imatrix file; `form` is `dat` or `gguf`.
#[pyfunction]
#[pyo3(signature = (path, form, entries, *, datasets, n_chunks, chunk_size, all_experts))]
#[expect(clippy::too_many_arguments, reason = "what a file holds, named in Python")]
pub fn write_statistics(
    py: Python<'_>,
    path: PathBuf,
    form: &str,
    entries: Vec<FileEntryRead<'_>>,
    datasets: Vec<String>,
    n_chunks: u32,
    chunk_size: u32,
    all_experts: bool,
) -> PyResult<()> {
    let form = match form {
        "dat" => Form::Dat,
        "gguf" => Form::Gguf,
        other => return Err(PyValueError::new_err(format!("form={other:?}: one of dat, gguf is needed"))),
    };
    let mut all = Vec::with_capacity(entries.len());
    for (name, sums, counts) in &entries {
        let (sums, counts) = (sums.as_slice()?.to_vec(), counts.as_slice()?.to_vec());
        all.push(SumEntry { name: name.clone(), sums, counts });
    }
    let sums = Sums {
        path: path.clone(),
        entries: all,
        datasets,
        n_chunks: Some(n_chunks),
        chunk_size: Some(chunk_size),
        all_experts,
        counts_are_calls: false,
    };
    enter(py, usize::MAX, |_| sums.write(&path, form).map_err(|e| Stop::Failed(ikq_quantize::Error::from(e))))
}
