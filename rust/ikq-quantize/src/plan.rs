//! [`Plan`]: everything that is decided before the first byte is read: types, reasons, statistics,
//! offsets, sizes. A dry run prints it; [`crate::run`] carries it out.

use ikq_encode::{EncodeOptions, can_encode, undoes_bias};
use ikq_formats::{Family, ImatrixUse, QuantType};
use ikq_gguf::{Metadata, Model, Options, SplitBy, Tensor, TensorSpec, TensorType, Value, is_split_key};

use std::sync::Arc;

use crate::covariance::{Covariances, Feedback, Foreign, Likeness, origin};
use crate::coverage::Coverage;
use crate::error::Error;
use crate::ftype::Ftype;
use crate::imatrix::{Entry, Imatrix};
use crate::mix::facts::Facts;
use crate::overrides::Override;
use crate::recipe::{Decision, Recipe, decide};
use crate::repack::Repack;
use crate::statistics::statistics;

pub use crate::statistics::Statistics;

/// Policies that are not about types.
#[derive(Clone, Debug, Default)]
pub struct PlanOptions {
    /// Re-encode tensors that are quantized already.
    pub allow_requantize: bool,
    /// Do not refuse types that require an imatrix where it has nothing.
    pub ignore_imatrix_rules: bool,
    /// Do not refuse an imatrix that lacks tensors or experts ([`Coverage::is_complete`]).
    pub allow_missing: bool,
    /// Use only imatrix entries whose names contain one of these.
    pub include_weights: Vec<String>,
    /// Use no imatrix entries whose names contain one of these.
    pub exclude_weights: Vec<String>,
    /// Do not write which imatrix was used.
    pub hide_imatrix: bool,
    /// A second output matrix of this type, `output_extra.weight`, where it is smaller.
    pub extra_output_tensor: Option<QuantType>,
    /// Metadata to change.
    pub overrides: Vec<Override>,
    /// Splitting and alignment of the output.
    pub output: Options,
    /// Divide the output among files as the source is; one file stays one. Instead of `output.split`.
    pub keep_split: bool,
    /// Choices about encoding.
    pub encode: EncodeOptions,
    /// Only put rows into groups or take them apart; the recipe is not looked at.
    pub repack: Option<Repack>,
    /// Covariances of inputs: encode with error feedback where they and the type allow it.
    pub covariances: Option<Arc<Covariances>>,
    /// Choose codes and scales of rows with error feedback again when they are done.
    pub in_rounds: bool,
    /// Only the tensors of this block. Types and statistics are those that they have in a plan for the whole model.
    pub only_layer: Option<u32>,
}

/// One tensor of the output.
#[derive(Clone, Debug)]
pub struct TensorPlan {
    pub name: String,
    /// Index of the tensor of the model that it is made from.
    pub source: usize,
    /// Dimensions, row length first.
    pub dims: Vec<u64>,
    pub from: TensorType,
    /// Type written; equals `from` for a copy.
    pub to: TensorType,
    /// Re-encoded (or repacked), or copied byte for byte.
    pub encode: Option<QuantType>,
    /// The rows of `from` are the rows of `to` in other places: nothing is decoded and encoded.
    pub repack: bool,
    /// Encoded with scales that undo the gain of their fit.
    pub unbiased: bool,
    /// What error feedback has to go by.
    pub feedback: Feedback,
    pub reason: String,
    pub fallback_from: Option<QuantType>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub statistics: Statistics,
}

/// A plan for a whole model; tensors are those of the model, in its order (and the extra output
/// matrix behind the one it copies).
#[derive(Clone, Debug)]
pub struct Plan {
    pub tensors: Vec<TensorPlan>,
    /// Offsets and sizes of the output.
    pub layout: ikq_gguf::Layout,
    /// What the imatrix has data for, where one was given.
    pub coverage: Option<Coverage>,
    /// Choices about encoding.
    pub encode: EncodeOptions,
    /// What tensors with [`Feedback::Site`] are encoded by.
    pub covariances: Option<Arc<Covariances>>,
    /// Whether they are encoded in rounds.
    pub in_rounds: bool,
}

impl Plan {
    /// Plans the quantization of `model`.
    ///
    /// # Errors
    /// Everything that can be known to fail before reading data: rules that cannot be meant, types
    /// without encoder, quantized input without leave, incomplete or misshapen statistics.
    pub fn new(
        model: &Model,
        recipe: &Recipe,
        imatrix: Option<&Imatrix>,
        options: &PlanOptions,
    ) -> Result<Plan, Error> {
        let (whole, imatrix) = (imatrix, imatrix.map(|m| selected(m, options)).transpose()?);
        let imatrix = imatrix.as_ref();
        let mut metadata = model.metadata().clone();
        for change in &options.overrides {
            change.apply(&mut metadata)?;
        }
        let facts = Facts::new(&metadata, model.tensors());
        let has_imatrix = imatrix.is_some_and(|m| !m.entries().is_empty());
        let decisions = match &options.repack {
            Some(repack) => repack.decide(model.tensors())?,
            None => decide(recipe, &facts, has_imatrix, model.tensors())?,
        };
        let mut tensors = Vec::with_capacity(decisions.len());
        let mut without = Vec::new();
        let output = if facts.is_tied { "token_embd.weight" } else { "output.weight" };
        let block = options.only_layer.map(|layer| format!("blk.{layer}."));
        for (source, (t, decision)) in model.tensors().iter().zip(decisions).enumerate() {
            if block.as_ref().is_some_and(|block| !t.name.starts_with(block)) {
                continue;
            }
            let planned = TensorPlan::new(t, source, decision, imatrix, facts.is_tied, options)?;
            if let Some(to) = planned.encode
                && !planned.repack
                && planned.statistics == Statistics::Missing
                && needs_imatrix(recipe.ftype, to)
                && !matches!(t.name.as_str(), "token_embd.weight" | "output.weight")
            {
                without.push((t.name.clone(), to));
            }
            tensors.push(planned);
            if let Some(ty) = options.extra_output_tensor.filter(|_| t.name == output) {
                tensors.extend(extra_output(t, source, ty, imatrix, options)?);
            }
        }
        if let (Some(layer), true) = (options.only_layer, tensors.is_empty()) {
            return Err(Error::NoSuchLayer { layer });
        }
        let coverage = whole.map(|m| Coverage::new(&tensors, model, m));
        if let Some(coverage) = coverage.as_ref().filter(|c| !options.allow_missing && !c.is_complete()) {
            return Err(Error::IncompleteImatrix { coverage: Box::new(coverage.clone()) });
        }
        if let Some((tensor, ty)) = without.first().filter(|_| !options.ignore_imatrix_rules) {
            return Err(Error::MissingImatrix {
                tensor: tensor.clone(),
                ty: *ty,
                n_tensors: without.len(),
                file: imatrix.map(|m| m.path.clone()),
            });
        }
        check_feedback(model, &tensors, imatrix, options)?;
        let specs = tensors.iter().map(|p| p.spec(model)).collect::<Result<_, _>>()?;
        let mut metadata = output_metadata(&metadata, recipe.ftype, imatrix.zip(coverage.as_ref()), options);
        let is_biased = |t: &TensorPlan| t.encode.is_some_and(undoes_bias) && !t.repack && !t.unbiased;
        if tensors.iter().any(is_biased) {
            metadata.set(BIASED_KEY, Value::Bool(true));
        }
        let output = Options {
            split: split(&tensors, model, options),
            per_tensor: Some(crate::recipe_hash::room()),
            ..options.output.clone()
        };
        let layout = ikq_gguf::Layout::new(&metadata, specs, &output)?;
        let covariances = options.covariances.clone();
        let (encode, in_rounds) = (options.encode, options.in_rounds);
        Ok(Plan { tensors, layout, coverage, encode, covariances, in_rounds })
    }
}

impl TensorPlan {
    fn new(
        t: &Tensor,
        source: usize,
        decision: Decision,
        imatrix: Option<&Imatrix>,
        tied: bool,
        options: &PlanOptions,
    ) -> Result<TensorPlan, Error> {
        let repack = decision.to.is_some() && options.repack.is_some();
        let spec = match decision.to {
            Some(to) => {
                if !repack {
                    check_encodable(t, to, options)?;
                }
                TensorSpec::new(&t.name, t.dims(), to)?
            }
            None => t.spec(),
        };
        Ok(TensorPlan {
            name: t.name.clone(),
            source,
            dims: t.dims().to_vec(),
            from: t.ty,
            to: spec.ty,
            encode: decision.to,
            repack,
            unbiased: !options.encode.biased && !repack && decision.to.is_some_and(undoes_bias),
            feedback: match &options.covariances {
                Some(covariances) => covariances.of(t, decision.to.filter(|_| !repack))?,
                None => Feedback::NotUsed,
            },
            statistics: statistics(t, decision.to.filter(|_| !repack), imatrix, tied)?,
            reason: decision.reason,
            fallback_from: decision.fallback_from,
            bytes_in: t.n_bytes() as u64,
            bytes_out: spec.size,
        })
    }

    /// The entry of the output's directory.
    fn spec(&self, model: &Model) -> Result<TensorSpec, Error> {
        match self.encode {
            Some(to) => Ok(TensorSpec::new(&self.name, &self.dims, to)?),
            None => Ok(model.tensors()[self.source].spec()),
        }
    }
}

/// How the output is divided among files.
fn split(tensors: &[TensorPlan], model: &Model, options: &PlanOptions) -> Option<SplitBy> {
    if !options.keep_split || model.shards().len() < 2 {
        return options.output.split.clone();
    }
    // the extra output matrix goes with the one that it copies
    let mut counts = vec![0; model.shards().len()];
    tensors.iter().for_each(|t| counts[model.tensors()[t.source].shard as usize] += 1);
    Some(SplitBy::Counts(counts))
}

/// The entries of an imatrix that the options leave.
fn selected(imatrix: &Imatrix, options: &PlanOptions) -> Result<Imatrix, Error> {
    let (include, exclude) = (&options.include_weights, &options.exclude_weights);
    if !include.is_empty() && !exclude.is_empty() {
        return Err(Error::IncludeAndExclude);
    }
    for (option, names) in [("--include-weights", include), ("--exclude-weights", exclude)] {
        let unused =
            |name: &&String| !imatrix.entries().iter().any(|(entry, _)| entry.contains(name.as_str()));
        if let Some(name) = names.iter().find(unused) {
            return Err(Error::NoSuchEntry { option, name: name.clone(), path: imatrix.path.clone() });
        }
    }
    let names = |list: &[String], entry: &str| list.iter().any(|name| entry.contains(name));
    Ok(imatrix.filtered(|e| (include.is_empty() || names(include, e)) && !names(exclude, e)))
}

/// Types of so few bits that the command asks for statistics.
fn needs_imatrix(ftype: Ftype, to: QuantType) -> bool {
    to.info().imatrix == ImatrixUse::Required || to == QuantType::Q2_K && ftype.name == "Q2_K_S"
}

/// A second output matrix of type `ty`, unless it would not be smaller than the source's.
fn extra_output(
    t: &Tensor,
    source: usize,
    ty: QuantType,
    imatrix: Option<&Imatrix>,
    options: &PlanOptions,
) -> Result<Option<TensorPlan>, Error> {
    if t.ne[1].is_multiple_of(ty.info().rows as u64)
        && TensorSpec::new("output_extra.weight", t.dims(), ty)?.size < t.n_bytes() as u64
    {
        let reason = "--extra-output-tensor".to_string();
        let decision = Decision { to: Some(ty), reason, fallback_from: None };
        // the output's statistics, also where the embedding serves as one
        let mut planned = TensorPlan::new(t, source, decision, imatrix, true, options)?;
        planned.name = "output_extra.weight".to_string();
        return Ok(Some(planned));
    }
    Ok(None)
}

/// That the covariances are of this model and of the imatrix's inputs, as far as can be told.
fn check_feedback(
    model: &Model,
    tensors: &[TensorPlan],
    imatrix: Option<&Imatrix>,
    options: &PlanOptions,
) -> Result<(), Error> {
    let Some(covariances) = &options.covariances else { return Ok(()) };
    let here = covariances.origin.as_ref().and_then(|of| Some(*of == origin(model)?));
    if here == Some(false) {
        return Err(Error::OtherOrigin { path: covariances.path.clone() });
    }
    let mut is_used = false;
    let mut worst: Option<(&TensorPlan, Likeness, &Entry)> = None;
    for t in tensors {
        let Feedback::Site { index, group } = t.feedback else { continue };
        is_used = true;
        if !matches!(t.statistics, Statistics::Found { .. }) {
            continue;
        }
        // as it stands in the file: what is planned for experts that few tokens reached is drawn to the others
        let Some((entry, _)) = imatrix.and_then(|m| m.find(&t.name)) else { continue };
        if let Some(likeness) = covariances.likeness(index, group, &entry.values).filter(|l| !l.is_same())
            && worst.is_none_or(|(_, least, _)| likeness.correlation < least.correlation)
        {
            worst = Some((t, likeness, entry));
        }
    }
    if let (Some((t, likeness, entry)), Some(imatrix)) = (worst, imatrix) {
        let counts = entry.counts.iter().map(|n| f64::from(*n));
        // where experts read one input, a token counts once for each of its experts
        let is_shared = counts.len() > 1 && matches!(t.feedback, Feedback::Site { group: Some(_), .. });
        let (counted, are_chunks) = match (imatrix.counts_are_calls, imatrix.n_chunks) {
            (true, _) => (counts.fold(0.0, f64::max), true),
            (false, Some(n)) if is_shared => (f64::from(n), true),
            _ => (counts.sum(), false),
        };
        return Err(Error::ForeignCovariance(Box::new(Foreign {
            tensor: t.name.clone(),
            covariances: covariances.path.clone(),
            imatrix: imatrix.path.clone(),
            likeness,
            counted,
            are_chunks,
            is_of_model: here == Some(true),
        })));
    }
    let is_wanted = tensors.iter().any(|t| t.feedback == Feedback::Missing);
    match is_wanted && !is_used {
        true => Err(Error::UnusedCovariances { path: covariances.path.clone() }),
        false => Ok(()),
    }
}

fn check_encodable(t: &Tensor, to: QuantType, options: &PlanOptions) -> Result<(), Error> {
    if !can_encode(to) {
        return Err(Error::CannotWrite { tensor: t.name.clone(), ty: to });
    }
    let from = t.quant_type()?;
    match from.info().family == Family::Float || options.allow_requantize {
        true => Ok(()),
        false => Err(Error::Requantize { tensor: t.name.clone(), from, to }),
    }
}

/// Key that marks outputs whose scales are the fitted ones, where others would undo the gain.
const BIASED_KEY: &str = "ikq.biased";
/// Key of the name of the covariances that error feedback went by.
const COVARIANCE_KEY: &str = "quantize.covariance.file";
/// Key by which earlier outputs said that theirs do.
const UNBIASED_KEY: &str = "ikq.unbiased";

/// The source's pairs byte for byte, with what quantizing changes.
fn output_metadata(
    source: &Metadata,
    ftype: Ftype,
    imatrix: Option<(&Imatrix, &Coverage)>,
    options: &PlanOptions,
) -> Metadata {
    let mut out: Metadata = source.iter().filter(|kv| !is_split_key(kv.key())).cloned().collect();
    if let Some(repack) = &options.repack {
        let old = out.get("general.file_type").and_then(Value::as_u64);
        if let Some(id) = repack.file_type(old) {
            out.set("general.file_type", Value::U32(id));
        }
        return out;
    }
    out.set("general.quantization_version", Value::U32(2));
    if let Some(id) = ftype.id {
        out.set("general.file_type", Value::U32(id));
    }
    // of the source it would say nothing about the output
    for key in [BIASED_KEY, UNBIASED_KEY, COVARIANCE_KEY] {
        out.remove(key);
    }
    if let Some(covariances) = &options.covariances {
        // without its folder: where files lay says nothing about the output
        let name = covariances.path.file_name().unwrap_or(covariances.path.as_os_str()).to_string_lossy();
        out.set(COVARIANCE_KEY, if options.hide_imatrix { "top_secret" } else { name.as_ref() });
    }
    let Some((m, coverage)) = imatrix else { return out };
    let int = |n: usize| Value::I32(i32::try_from(n).unwrap_or(i32::MAX));
    let hidden = options.hide_imatrix;
    let text = |shown: String| if hidden { "top_secret".to_string() } else { shown };
    let count = |n: usize| int(if hidden { 0 } else { n });
    out.set("quantize.imatrix.file", text(m.path.to_string_lossy().into_owned()).as_str());
    if !m.datasets.is_empty() {
        out.set("quantize.imatrix.dataset", text(m.datasets.join(", ")).as_str());
    }
    out.set("quantize.imatrix.entries_count", count(m.entries().len()));
    if let Some(n) = m.n_chunks {
        out.set("quantize.imatrix.chunks_count", count(n as usize));
    }
    // only where something is missing: what other programs write stays as they write it
    let unseen = coverage.n_experts - coverage.n_experts_seen;
    for (key, n) in [
        ("quantize.imatrix.missing_count", coverage.missing.len()),
        ("quantize.imatrix.unseen_experts_count", unseen),
    ] {
        if n > 0 && !hidden {
            out.set(key, int(n));
        }
    }
    out
}
