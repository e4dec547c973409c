//! Files of covariances: GGUF with tensors `NAME.in_cov` [k (k + 1) / 2, groups] and `NAME.counts` [1, groups] for every site,
//! NAME being the first tensor that reads it, and in the header, site by site, the names of all of them. Where products of other
//! inputs are wanted than those that were met, `NAME.in_cross` [k k, groups] has the sums of (wanted - met) met^T; where it is known
//! what the products with the matrix as it is lack, `NAME.out_cross` [rows k, groups] has the sums of that times met^T.
//! `NAME.in_start` [k, n] has what the first tokens of texts were, which are in the sums, too, `NAME.start_groups` [1, n] the groups
//! that they reached, and `NAME.in_start_missing` [k, n] (or [rows, n]) what they lacked, where more is wanted.

use std::path::{Path, PathBuf};

use ikq_covariance::{Missing, Starts, triangle};
use ikq_formats::QuantType;
use ikq_gguf::{
    Array, Bytes, Layout, Metadata, Model, Options, TensorSpec, TensorType, Value, ValueType, Writer,
};

use super::{Covariances, Reader, Site, starts};
use crate::error::Error;
use crate::hash::Hasher;

const TYPE: &str = "general.type";
const KIND: &str = "covariance";
const DATASETS: &str = "covariance.datasets";
const CHUNK_COUNT: &str = "covariance.chunk_count";
const CHUNK_SIZE: &str = "covariance.chunk_size";
const IDENTITY: &str = "covariance.identity";
const ORIGIN: &str = "covariance.origin";
const SUMS: &str = ".in_cov";
const COUNTS: &str = ".counts";
const CROSS: &str = ".in_cross";
const PRODUCTS_CROSS: &str = ".out_cross";
const STARTS: &str = ".in_start";
const START_GROUPS: &str = ".start_groups";
const MISSING: &str = ".in_start_missing";

/// Key of the names of the tensors that read site `i`, and of the group of each (-1: one for each matrix).
fn tensors_key(i: usize) -> String {
    format!("covariance.site.{i}.tensors")
}

fn groups_key(i: usize) -> String {
    format!("covariance.site.{i}.groups")
}

/// A site as it is written: the triangles of one group at a time.
pub struct SiteSums<'a> {
    pub readers: Vec<Reader>,
    pub k: usize,
    pub counts: Vec<f32>,
    /// The triangle of a group.
    pub group: Box<dyn Fn(usize) -> Vec<f32> + 'a>,
    /// What is missing where more is wanted than was met, and the matrix of a group.
    pub cross: Option<Cross<'a>>,
    pub starts: Starts,
}

/// What is missing, and the sums of it for a group.
pub type Cross<'a> = (Missing, Box<dyn Fn(usize) -> Vec<f32> + 'a>);

impl Covariances {
    /// Opens a file and reads all of it: that it is whole and can be believed is known before anything is encoded.
    ///
    /// # Errors
    /// IO errors; [`Error::NoCovariances`] for other files, and damaged ones, by name and site.
    pub fn open(path: impl AsRef<Path>) -> Result<Covariances, Error> {
        let path = path.as_ref();
        let wrong = |what: String| Error::NoCovariances { path: path.to_path_buf(), what };
        let model = Model::open_file(path)?;
        let metadata = model.metadata();
        if metadata.get(TYPE).and_then(Value::as_str) != Some(KIND) {
            return Err(wrong("a file of another kind".to_string()));
        }
        let number = |key| metadata.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let array = |key: &str| metadata.get(key).and_then(Value::as_array);
        let text = |s: &[u8]| String::from_utf8_lossy(s).into_owned();
        let mut sites = Vec::new();
        for t in model.tensors() {
            let Some(name) = t.name.strip_suffix(SUMS) else { continue };
            let counts = model.require(&format!("{name}{COUNTS}"))?;
            if t.ty.known() != Some(QuantType::F32) || counts.ty.known() != Some(QuantType::F32) {
                return Err(wrong(format!("the sums of `{name}` are no 32-bit floats")));
            }
            let counts: Vec<f32> = counts.data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let k = columns(t.ne[0]).filter(|_| counts.len() as u64 == t.ne[1] && t.ne[2] * t.ne[3] == 1);
            let Some(k) = k else {
                return Err(wrong(format!(
                    "{} x {} sums of `{name}` for {} counts",
                    t.ne[0],
                    t.ne[1],
                    counts.len()
                )));
            };
            let names = array(&tensors_key(sites.len())).map(|a| a.strings().map(text).collect::<Vec<_>>());
            let groups = array(&groups_key(sites.len())).and_then(|a| a.to_i64s());
            let readers: Vec<Reader> = match (names, groups) {
                (Some(names), Some(groups)) if names.len() == groups.len() && !names.is_empty() => {
                    let reader = |(tensor, group)| Reader { tensor, group: usize::try_from(group).ok() };
                    names.into_iter().zip(groups).map(reader).collect()
                }
                _ => return Err(wrong(format!("nothing says which tensors read the input of `{name}`"))),
            };
            if readers.iter().any(|r| r.group.is_some_and(|g| g >= counts.len())) {
                return Err(wrong(format!("a tensor reads a group of `{name}` that is not there")));
            }
            let cross = read_cross(&model, name, k, counts.len()).map_err(wrong)?;
            let n_missing = cross.as_ref().map_or(k, |(missing, _)| missing.n_rows(k));
            let starts = read_starts(&model, name, (k, n_missing), counts.len()).map_err(wrong)?;
            let mut site = Site { readers, k, counts, sums: t.data.clone(), cross, starts, hash: 0 };
            check(&site).map_err(|what| wrong(format!("{what} of `{name}`")))?;
            let mut hasher = Hasher::new("covariance");
            hasher.floats(&site.counts);
            hasher.bytes(&site.sums);
            if let Some((missing, cross)) = &site.cross {
                if let Missing::Products(n_rows) = missing {
                    hasher.number(*n_rows as u64);
                }
                hasher.bytes(cross);
            }
            starts::hash(&site.starts, &mut hasher);
            site.hash = hasher.end();
            sites.push(site);
        }
        if sites.is_empty() {
            return Err(wrong("there is no covariance in it".to_string()));
        }
        Ok(Covariances {
            path: path.to_path_buf(),
            sites,
            datasets: array(DATASETS).map(|a| a.strings().map(text).collect()).unwrap_or_default(),
            n_chunks: number(CHUNK_COUNT).unwrap_or(0),
            chunk_size: number(CHUNK_SIZE).unwrap_or(0),
            origin: metadata.get(ORIGIN).and_then(Value::as_str).map(str::to_string),
            identity: metadata.get(IDENTITY).and_then(Value::as_str).map(str::to_string),
        })
    }
}

/// What tokens of the site `name` lack, if the file has that.
fn read_cross(
    model: &Model,
    name: &str,
    k: usize,
    n_groups: usize,
) -> Result<Option<(Missing, Bytes)>, String> {
    let of = |suffix: &str| model.tensor(&format!("{name}{suffix}"));
    let (t, missing) = match (of(CROSS), of(PRODUCTS_CROSS)) {
        (None, None) => return Ok(None),
        (Some(t), None) => (t, Missing::Inputs),
        (None, Some(t)) => (t, Missing::Products(usize::try_from(t.ne[0]).unwrap_or(usize::MAX) / k)),
        (Some(_), Some(_)) => {
            return Err(format!("both `{name}{CROSS}` and `{name}{PRODUCTS_CROSS}` are there"));
        }
    };
    let is_whole = missing.n_rows(k).checked_mul(k).is_some_and(|n| n > 0 && n as u64 == t.ne[0]);
    match t.ty.known() == Some(QuantType::F32) && is_whole && t.ne[1..] == [n_groups as u64, 1, 1] {
        true => Ok(Some((missing, t.data.clone()))),
        false => Err(format!("the sums `{}` are not those of {k} columns", t.name)),
    }
}

/// First tokens of the site `name`; none where the file has none.
fn read_starts(
    model: &Model,
    name: &str,
    (k, n_missing): (usize, usize),
    n_groups: usize,
) -> Result<Starts, String> {
    let part = |suffix: &str, columns: usize| -> Result<Option<Vec<f32>>, String> {
        let Some(t) = model.tensor(&format!("{name}{suffix}")) else { return Ok(None) };
        if t.ty.known() != Some(QuantType::F32) || t.ne[0] != columns as u64 || t.ne[2] * t.ne[3] != 1 {
            return Err(format!("`{}` does not have {columns} floats for each first token", t.name));
        }
        let floats: Vec<f32> = t.data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        match floats.iter().find(|v| !v.is_finite()) {
            Some(v) => Err(format!("there is a {v} in `{}`", t.name)),
            None => Ok(Some(floats)),
        }
    };
    let (Some(met), Some(groups)) = (part(STARTS, k)?, part(START_GROUPS, 1)?) else {
        return Ok(Starts::default());
    };
    let missing = part(MISSING, n_missing)?.unwrap_or_default();
    if let Some(group) = groups.iter().find(|g| g.fract() != 0.0 || **g < 0.0 || **g >= n_groups as f32) {
        return Err(format!("a first token of `{name}` is in group {group} of {n_groups}"));
    }
    let fits = missing.is_empty() || missing.len() == n_missing * groups.len();
    if met.len() != k * groups.len() || !fits {
        return Err(format!("the parts of the first tokens of `{name}` do not fit together"));
    }
    Ok(Starts { groups: groups.iter().map(|g| *g as u32).collect(), met, missing })
}

/// The number of columns whose triangle has so many elements.
fn columns(n: u64) -> Option<usize> {
    let n = usize::try_from(n).ok()?;
    let k = ((8.0 * n as f64 + 1.0).sqrt() as usize).saturating_sub(1) / 2;
    (k..k + 2).find(|k| *k > 0 && triangle(*k) == n)
}

/// Numbers that no sums of products are.
fn check(site: &Site) -> Result<(), String> {
    if let Some(n) = site.counts.iter().find(|n| !(n.is_finite() && **n >= 0.0)) {
        return Err(format!("a count is {n}: the counts"));
    }
    for group in 0..site.n_groups() {
        if let Some(v) = site.triangle(group).find(|v| !v.is_finite()) {
            return Err(format!("a sum is {v}: group {group}"));
        }
        if let Some(v) = site.diagonal(group).iter().find(|v| **v < 0.0) {
            return Err(format!("a sum of squares is {v}: group {group}"));
        }
        if let Some(v) = site.cross(group).and_then(|mut c| c.find(|v| !v.is_finite())) {
            return Err(format!("a sum of products with what is wanted is {v}: group {group}"));
        }
    }
    Ok(())
}

/// What a file says beside its sums.
#[derive(Clone, Debug, Default)]
pub struct Written {
    pub datasets: Vec<String>,
    pub n_chunks: u32,
    pub chunk_size: u32,
    /// As [`Covariances`] has them.
    pub origin: Option<String>,
    pub identity: Option<String>,
}

/// Writes a file: beside its name first, then in its place. One triangle at a time is in memory besides what
/// `sites` hold.
///
/// # Errors
/// IO errors.
pub fn write(path: &Path, sites: &[SiteSums<'_>], written: &Written) -> Result<(), Error> {
    let mut metadata = Metadata::new();
    metadata.set(TYPE, KIND);
    metadata.set(DATASETS, Array::of_strings(&written.datasets));
    metadata.set(CHUNK_COUNT, written.n_chunks);
    metadata.set(CHUNK_SIZE, written.chunk_size);
    for (key, value) in [(ORIGIN, &written.origin), (IDENTITY, &written.identity)] {
        if let Some(value) = value {
            metadata.set(key, value.as_str());
        }
    }
    let mut specs = Vec::new();
    for (i, site) in sites.iter().enumerate() {
        let names: Vec<&str> = site.readers.iter().map(|r| r.tensor.as_str()).collect();
        let group = |r: &Reader| r.group.and_then(|g| i32::try_from(g).ok()).unwrap_or(-1);
        let groups: Vec<i32> = site.readers.iter().map(group).collect();
        metadata.set(&tensors_key(i), Array::of_strings(&names));
        metadata.set(&groups_key(i), Array::new(ValueType::I32, groups)?);
        let name = names.first().copied().unwrap_or_default();
        let n_groups = site.counts.len() as u64;
        let cross = site.cross.as_ref().map(|(missing, _)| {
            let suffix = if *missing == Missing::Inputs { CROSS } else { PRODUCTS_CROSS };
            (suffix, missing.n_rows(site.k) * site.k, n_groups)
        });
        let n_starts = site.starts.groups.len() as u64;
        let n_missing = site.cross.as_ref().map_or(site.k, |(missing, _)| missing.n_rows(site.k));
        let starts =
            [(STARTS, site.k, n_starts), (START_GROUPS, 1, n_starts), (MISSING, n_missing, n_starts)];
        let n_parts = if n_starts == 0 { 0 } else { 2 + usize::from(!site.starts.missing.is_empty()) };
        let sums = [(SUMS, triangle(site.k), n_groups), (COUNTS, 1, n_groups)];
        for (suffix, columns, rows) in sums.into_iter().chain(cross).chain(starts.into_iter().take(n_parts)) {
            specs.push(TensorSpec {
                name: format!("{name}{suffix}"),
                dims: vec![columns as u64, rows],
                ty: TensorType::from_id(QuantType::F32.id()),
                size: 4 * columns as u64 * rows,
            });
        }
    }
    let writer = Writer::create(path, Layout::new(&metadata, specs, &Options::default())?)?;
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    // in the order of the specs
    let mut tensors = 0..;
    let mut next = || tensors.next().unwrap_or_default();
    for site in sites {
        let (sums, counts) = (next(), next());
        let cross = site.cross.as_ref().map(|(_, cross)| (cross, next()));
        for group in 0..site.counts.len() {
            let triangle = bytes(&(site.group)(group));
            writer.write_at(sums, (group * triangle.len()) as u64, &triangle)?;
            if let Some((cross, tensor)) = &cross {
                let matrix = bytes(&cross(group));
                writer.write_at(*tensor, (group * matrix.len()) as u64, &matrix)?;
            }
        }
        writer.write_at(counts, 0, &bytes(&site.counts))?;
        let Starts { groups, met, missing } = &site.starts;
        let groups: Vec<f32> = groups.iter().map(|g| *g as f32).collect();
        for part in [met, &groups, missing].into_iter().filter(|part| !part.is_empty()) {
            writer.write_at(next(), 0, &bytes(part))?;
        }
    }
    writer.finish()?;
    Ok(())
}

/// Adds files up: sites that several have, as if they came from one text; and all others as they are (layers that
/// were collected one after another).
///
/// # Errors
/// IO errors, damaged files, [`Error::NoCovariances`] where sites of one name differ in shape.
pub fn merge(paths: &[PathBuf], out: &Path) -> Result<(), Error> {
    let files = paths.iter().map(Covariances::open).collect::<Result<Vec<_>, _>>()?;
    let origin = files.iter().find_map(|f| f.origin.clone());
    if let Some(other) = files.iter().find(|f| f.origin.is_some() && f.origin != origin) {
        let what = format!("it is of another model than {}", files[0].path.display());
        return Err(Error::NoCovariances { path: other.path.clone(), what });
    }
    let mut places: Vec<Vec<&Site>> = Vec::new();
    for file in &files {
        for site in &file.sites {
            match places.iter_mut().find(|p| p[0].readers == site.readers) {
                Some(same) if is_alike(same[0], site) => same.push(site),
                Some(_) => {
                    let name = &site.readers[0].tensor;
                    let what =
                        format!("the input of `{name}` has another form than in {}", files[0].path.display());
                    return Err(Error::NoCovariances { path: file.path.clone(), what });
                }
                None => places.push(vec![site]),
            }
        }
    }
    let sites: Vec<SiteSums<'_>> = places
        .iter()
        .map(|same| SiteSums {
            readers: same[0].readers.clone(),
            k: same[0].k,
            counts: (0..same[0].n_groups()).map(|g| same.iter().map(|s| s.counts[g]).sum()).collect(),
            group: Box::new(|group| {
                let mut sums: Vec<f32> = same[0].triangle(group).collect();
                for site in &same[1..] {
                    sums.iter_mut().zip(site.triangle(group)).for_each(|(sum, v)| *sum += v);
                }
                sums
            }),
            cross: same[0].missing().map(|missing| -> Cross<'_> {
                let sum = move |group: usize| {
                    let mut sums = vec![0.0; missing.n_rows(same[0].k) * same[0].k];
                    for cross in same.iter().filter_map(|s| s.cross(group)) {
                        sums.iter_mut().zip(cross).for_each(|(sum, v)| *sum += v);
                    }
                    sums
                };
                (missing, Box::new(sum))
            }),
            starts: same.iter().map(|s| &s.starts).collect(),
        })
        .collect();
    let mut datasets: Vec<String> = Vec::new();
    for name in files.iter().flat_map(|f| &f.datasets) {
        if !datasets.contains(name) {
            datasets.push(name.clone());
        }
    }
    // parts of one text, layer by layer, have its chunks; parts of several texts have the sum
    let has_same = places.iter().any(|same| same.len() > 1);
    let chunks = files.iter().map(|f| f.n_chunks);
    let n_chunks = if has_same { chunks.sum() } else { chunks.max().unwrap_or(0) };
    let chunk_size = files.iter().map(|f| f.chunk_size).max().unwrap_or(0);
    write(out, &sites, &Written { datasets, n_chunks, chunk_size, origin, identity: None })
}

/// Whether sums of both can be added.
fn is_alike(a: &Site, b: &Site) -> bool {
    a.k == b.k && a.n_groups() == b.n_groups() && a.missing() == b.missing()
}

/// A site, and the triangles of its groups.
pub type Restored<'a> = (&'a Site, Vec<Vec<f32>>);

/// The sums of a file, to go on from.
pub fn restore(file: &Covariances) -> impl Iterator<Item = Restored<'_>> {
    file.sites.iter().map(|s| (s, (0..s.n_groups()).map(|g| s.triangle(g).collect()).collect()))
}
