//! [`Plan`]: everything that is decided before the first byte is read: types, reasons, statistics,
//! offsets, sizes. A dry run prints it; [`crate::run`] carries it out.

use ikq_formats::{Family, ImatrixUse, QuantType};
use ikq_gguf::{Metadata, Model, Options, TensorSpec, TensorType, Value, is_split_key};

use crate::encode::can_encode;
use crate::error::Error;
use crate::imatrix::{Entry, Imatrix};
use crate::recipe::{Decision, Recipe, decide};

/// Policies that are not about types.
#[derive(Clone, Debug, Default)]
pub struct PlanOptions {
    /// Re-encode tensors that are quantized already.
    pub allow_requantize: bool,
    /// Do not refuse types that require an imatrix where it has nothing.
    pub ignore_imatrix_rules: bool,
    /// Splitting and alignment of the output.
    pub output: Options,
}

/// Where a tensor's importance comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Statistics {
    /// The tensor is copied or its type looks at none.
    NotUsed,
    /// No imatrix was given, or it has nothing for the tensor: all columns count the same.
    Missing,
    /// `values` has one number per column (for all matrices, or matrix after matrix).
    Found {
        values: Vec<f32>,
        /// The entry of another tensor that reads the same input.
        borrowed_from: Option<String>,
        /// Experts whose values are all zero: the calibration text never reached them.
        unseen_experts: Vec<usize>,
    },
}

/// What happens to one tensor.
#[derive(Clone, Debug)]
pub struct TensorPlan {
    pub name: String,
    /// Dimensions, row length first.
    pub dims: Vec<u64>,
    pub from: TensorType,
    /// Type written; equals `from` for a copy.
    pub to: TensorType,
    /// Re-encoded, or copied byte for byte.
    pub encode: Option<QuantType>,
    pub reason: String,
    pub fallback_from: Option<QuantType>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub statistics: Statistics,
}

/// A plan for a whole model; tensors are those of the model, in its order.
#[derive(Clone, Debug)]
pub struct Plan {
    pub tensors: Vec<TensorPlan>,
    /// Offsets and sizes of the output.
    pub layout: ikq_gguf::Layout,
}

impl Plan {
    /// Plans the quantization of `model`.
    ///
    /// # Errors
    /// Everything that can be known to fail before reading data: rules that cannot be meant, types
    /// without encoder, quantized input without leave, missing or misshapen statistics.
    pub fn new(
        model: &Model,
        recipe: &Recipe,
        imatrix: Option<&Imatrix>,
        options: &PlanOptions,
    ) -> Result<Plan, Error> {
        let decisions = decide(recipe, model.tensors())?;
        let mut tensors = Vec::with_capacity(decisions.len());
        let mut specs = Vec::with_capacity(decisions.len());
        let mut without = Vec::new();
        let tied = model.tensor("output.weight").is_none();
        for (t, decision) in model.tensors().iter().zip(decisions) {
            let spec = match decision.to {
                Some(to) => {
                    check_encodable(t, to, options)?;
                    TensorSpec::new(&t.name, t.dims(), to)?
                }
                None => t.spec(),
            };
            let statistics = statistics(t, &decision, imatrix, tied)?;
            if let Some(to) = decision.to
                && statistics == Statistics::Missing
                && to.info().imatrix == ImatrixUse::Required
                && !matches!(t.name.as_str(), "token_embd.weight" | "output.weight")
            {
                without.push((t.name.clone(), to));
            }
            tensors.push(TensorPlan {
                name: t.name.clone(),
                dims: t.dims().to_vec(),
                from: t.ty,
                to: spec.ty,
                encode: decision.to,
                reason: decision.reason,
                fallback_from: decision.fallback_from,
                bytes_in: t.data.len() as u64,
                bytes_out: spec.size,
                statistics,
            });
            specs.push(spec);
        }
        if let Some((tensor, ty)) = without.first().filter(|_| !options.ignore_imatrix_rules) {
            return Err(Error::MissingImatrix {
                tensor: tensor.clone(),
                ty: *ty,
                n_tensors: without.len(),
                file: imatrix.map(|m| m.path.clone()),
            });
        }
        let metadata = output_metadata(model.metadata(), recipe, imatrix);
        let layout = ikq_gguf::Layout::new(&metadata, specs, &options.output)?;
        Ok(Plan { tensors, layout })
    }
}

fn check_encodable(t: &ikq_gguf::Tensor, to: QuantType, options: &PlanOptions) -> Result<(), Error> {
    if !can_encode(to) {
        return Err(Error::CannotWrite { tensor: t.name.clone(), ty: to });
    }
    let from = t.quant_type()?;
    match from.info().family == Family::Float || options.allow_requantize {
        true => Ok(()),
        false => Err(Error::Requantize { tensor: t.name.clone(), from, to }),
    }
}

fn statistics(
    t: &ikq_gguf::Tensor,
    decision: &Decision,
    imatrix: Option<&Imatrix>,
    tied: bool,
) -> Result<Statistics, Error> {
    // rows of an embedding are looked up, not multiplied: there is no input to have statistics of
    let looked_up = t.name == "token_embd.weight" && !tied || t.name == "per_layer_token_embd.weight";
    match decision.to {
        Some(to) if to.info().imatrix != ImatrixUse::Ignored => {}
        _ => return Ok(Statistics::NotUsed),
    }
    let Some((Entry { values, .. }, borrowed_from)) = imatrix.and_then(|m| m.find(&t.name)) else {
        return Ok(if looked_up { Statistics::NotUsed } else { Statistics::Missing });
    };
    let n_per_row = t.ne[0] as usize;
    let n_matrices = (t.ne[2] * t.ne[3]) as usize;
    if values.len() != n_per_row && values.len() != n_per_row * n_matrices {
        // an embedding is read by row: an entry under its name belongs to a tied output
        if t.name == "token_embd.weight" {
            return Ok(Statistics::Missing);
        }
        return Err(Error::ImatrixShape {
            tensor: t.name.clone(),
            entry: borrowed_from.unwrap_or_else(|| t.name.clone()),
            found: values.len(),
            n_per_row,
            n_matrices,
        });
    }
    let experts = values.chunks_exact(n_per_row).enumerate();
    let unseen_experts = experts.filter(|(_, v)| v.iter().all(|x| *x == 0.0)).map(|(i, _)| i).collect();
    Ok(Statistics::Found { values: values.clone(), borrowed_from, unseen_experts })
}

/// The source's pairs byte for byte, with what quantizing changes.
fn output_metadata(source: &Metadata, recipe: &Recipe, imatrix: Option<&Imatrix>) -> Metadata {
    let mut out: Metadata = source.iter().filter(|kv| !is_split_key(kv.key())).cloned().collect();
    out.set("general.quantization_version", Value::U32(2));
    out.set("general.file_type", Value::U32(recipe.ftype.id));
    if let Some(m) = imatrix {
        out.set("quantize.imatrix.file", m.path.to_string_lossy().as_ref());
        if !m.datasets.is_empty() {
            out.set("quantize.imatrix.dataset", m.datasets.join(", ").as_str());
        }
        out.set(
            "quantize.imatrix.entries_count",
            Value::I32(i32::try_from(m.entries().len()).unwrap_or(i32::MAX)),
        );
        if let Some(n) = m.n_chunks {
            out.set("quantize.imatrix.chunks_count", Value::I32(i32::try_from(n).unwrap_or(i32::MAX)));
        }
    }
    out
}
