//! From wishes to a type per tensor: the rules, in the order in which they apply.
//!
//! | # | step | says |
//! |--:|---|---|
//! | 1 | never quantized | copied: norms, vectors, integers, convolutions, positions, the router without its option |
//! | 2 | TYPE | the base type |
//! | 3 | output rule (not with `--pure`) | `output.weight`, or the tied embedding, at least Q6_K |
//! | 4 | `--custom-q` | the first pattern found in the name |
//! | 5 | `--token-embedding-type`, `--output-tensor-type`, `--ffn-gate-inp-type` | win over all rules |
//! | 6 | interleaved embedding | its plain twin: single rows must be reachable |
//! | 7 | row fallback | the type's chain when its block does not tile the row, F16 at the end |
//! | 8 | row groups | the plain twin when the rows are not whole groups |
//!
//! Every decision carries its reason. Where ikq departs from the reference on purpose: custom rules
//! also hold with `--pure` and for float bases, a rule that matches nothing is an error, the fallback
//! comes after the overrides, and unknown type names are refused.

use ikq_formats::{Family, QuantType, fallback_for_row, row_multiple};
use ikq_gguf::Tensor;
use regex::Regex;

use crate::error::Error;
use crate::ftype::Ftype;

/// One `pattern=type` of `--custom-q`.
#[derive(Clone, Debug)]
pub struct CustomRule {
    /// Searched anywhere in a tensor's name.
    pub pattern: Regex,
    pub ty: QuantType,
}

impl CustomRule {
    /// Parses `re=type,re=type,...`; a pattern cannot contain a comma, and its last `=` ends it.
    ///
    /// # Errors
    /// A part without `=`, a regular expression that is none, an unknown type.
    pub fn parse_list(text: &str) -> Result<Vec<CustomRule>, Error> {
        let parts = text.split(',').map(str::trim).filter(|p| !p.is_empty());
        parts.map(CustomRule::parse).collect()
    }

    fn parse(part: &str) -> Result<CustomRule, Error> {
        let bad = |why: String| Error::CustomRule { rule: part.to_string(), why };
        let (pattern, ty) = part.rsplit_once('=').ok_or_else(|| bad("there is no `=`".into()))?;
        let ty = QuantType::parse(ty)?;
        let pattern = Regex::new(pattern).map_err(|e| bad(e.to_string().replace('\n', " ")))?;
        Ok(CustomRule { pattern, ty })
    }
}

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub ftype: Ftype,
    /// The base type for everything that no explicit option names.
    pub pure: bool,
    pub custom: Vec<CustomRule>,
    pub token_embedding_type: Option<QuantType>,
    pub output_tensor_type: Option<QuantType>,
    pub ffn_gate_inp_type: Option<QuantType>,
}

impl Recipe {
    /// TYPE and nothing else.
    pub fn new(ftype: Ftype) -> Recipe {
        Recipe {
            ftype,
            pure: false,
            custom: Vec::new(),
            token_embedding_type: None,
            output_tensor_type: None,
            ffn_gate_inp_type: None,
        }
    }
}

/// The answer for one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The type to write; `None`: the tensor is copied as it is.
    pub to: Option<QuantType>,
    /// Why, for people.
    pub reason: String,
    /// The type wanted before the row or its groups forced another one.
    pub fallback_from: Option<QuantType>,
}

const EMBEDDING: &str = "token_embd.weight";
const PER_LAYER_EMBEDDING: &str = "per_layer_token_embd.weight";
const OUTPUT: &str = "output.weight";
const ROUTER: &str = "ffn_gate_inp.weight";

/// Name parts of tensors that stay as they are, with what to call them.
const KEPT: &[(&str, &str)] = &[
    ("_norm.weight", "norm"),
    ("position_embd.weight", "position embedding"),
    ("token_types.weight", "token types"),
    ("ssm_conv1d", "convolution"),
    ("ssm_x.weight", "state-space input"),
    ("ssm_dt.weight", "state-space step"),
    ("attn_rel_b.weight", "relative positions"),
];

/// Decides for all tensors of a model.
///
/// # Errors
/// A mix whose rules are not known, or a custom rule that matches no tensor that can be quantized.
pub fn decide(recipe: &Recipe, tensors: &[Tensor]) -> Result<Vec<Decision>, Error> {
    if recipe.ftype.is_mix() && !recipe.pure {
        return Err(Error::Mix { name: recipe.ftype.name, base: recipe.ftype.base });
    }
    let tied = !tensors.iter().any(|t| t.name == OUTPUT);
    let mut matched = vec![false; recipe.custom.len()];
    let decisions = tensors.iter().map(|t| decide_one(recipe, t, tied, &mut matched)).collect();
    match matched.iter().position(|m| !m) {
        Some(rule) => {
            let CustomRule { pattern, ty } = &recipe.custom[rule];
            Err(Error::UnmatchedRule { rule: format!("{}={ty}", pattern.as_str()) })
        }
        None => Ok(decisions),
    }
}

fn decide_one(recipe: &Recipe, t: &Tensor, tied: bool, matched: &mut [bool]) -> Decision {
    let keep = |reason: String| Decision { to: None, reason, fallback_from: None };
    if let Some(reason) = kept_because(t, recipe.ffn_gate_inp_type) {
        return keep(reason);
    }
    let (wanted, mut reason) = wish(recipe, t, tied, matched);

    let mut to = wanted;
    if let Some(base) = to.info().base.filter(|_| t.name == EMBEDDING || t.name == PER_LAYER_EMBEDDING) {
        reason += &format!("; {base} because single rows of an embedding must be reachable");
        to = base;
    }
    let before_shape = to;
    let [n_per_row, rows, ..] = t.ne;
    let blocks_fit = fallback_for_row(to, usize::try_from(n_per_row).unwrap_or(usize::MAX));
    if let Some(fallback) = blocks_fit {
        reason +=
            &format!("; {fallback} because rows of {n_per_row} are not a multiple of {}", row_multiple(to));
        to = fallback;
    }
    if let Some(base) = to.info().base.filter(|_| !rows.is_multiple_of(to.info().rows as u64)) {
        reason += &format!("; {base} because {rows} rows are not groups of {}", to.info().rows);
        to = base;
    }
    let fallback_from = (to != before_shape).then_some(before_shape);
    match t.ty.known() == Some(to) {
        true => Decision { to: None, reason: format!("is {to} already ({reason})"), fallback_from },
        false => Decision { to: Some(to), reason, fallback_from },
    }
}

/// Why a tensor is never quantized, if so.
fn kept_because(t: &Tensor, router: Option<QuantType>) -> Option<String> {
    let Some(ty) = t.ty.known() else { return Some(format!("{} is copied", t.ty)) };
    if ty.info().family == Family::Integer {
        return Some("integers".into());
    }
    if !t.name.ends_with("weight") {
        return Some("not a weight".into());
    }
    if let Some((_, what)) = KEPT.iter().find(|(part, _)| t.name.contains(part)) {
        return Some((*what).into());
    }
    if t.ne[1..].iter().all(|n| *n == 1) {
        return Some("one-dimensional".into());
    }
    if t.name.contains(ROUTER) && router.is_none() {
        return Some("router, kept (--ffn-gate-inp-type quantizes it)".into());
    }
    None
}

/// Steps 2 to 5: what the recipe wants, before shapes have their say.
fn wish(recipe: &Recipe, t: &Tensor, tied: bool, matched: &mut [bool]) -> (QuantType, String) {
    let base = recipe.ftype.base;
    let mut wanted = (base, if recipe.pure { "--pure".to_string() } else { "base type".to_string() });
    let is_output = t.name == OUTPUT || tied && t.name == EMBEDDING;
    if is_output && !recipe.pure && base.bpw() < QuantType::Q6_K.bpw() {
        let to = if t.ne[0].is_multiple_of(256) { QuantType::Q6_K } else { QuantType::Q8_0 };
        wanted = (to, if tied { "output rule (tied embedding)".into() } else { "output rule".into() });
    }
    // every rule that would match counts as used, whether or not an earlier one decides
    let mut first = None;
    for (rule, used) in recipe.custom.iter().zip(matched) {
        if rule.pattern.is_match(&t.name) {
            *used = true;
            first = first.or(Some(rule));
        }
    }
    if let Some(rule) = first {
        wanted = (rule.ty, format!("custom rule `{}`", rule.pattern.as_str()));
    }
    let options = [
        (t.name == EMBEDDING, recipe.token_embedding_type, "--token-embedding-type"),
        (t.name == OUTPUT, recipe.output_tensor_type, "--output-tensor-type"),
        (t.name.contains(ROUTER), recipe.ffn_gate_inp_type, "--ffn-gate-inp-type"),
    ];
    for (applies, ty, option) in options {
        if let Some(ty) = ty.filter(|_| applies) {
            wanted = (ty, option.to_string());
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use QuantType::*;
    use ikq_gguf::{Bytes, TensorType};

    fn tensor(name: &str, ne: [u64; 4], ty: QuantType) -> Tensor {
        let n_dims = 4 - ne.iter().rev().take_while(|n| **n == 1).count() as u32;
        let data = Bytes::from(Vec::new());
        Tensor { name: name.into(), ne, n_dims, ty: TensorType::Known(ty), shard: 0, file_offset: 0, data }
    }

    fn model() -> Vec<Tensor> {
        vec![
            tensor("token_embd.weight", [256, 512, 1, 1], BF16),
            tensor("blk.0.attn_norm.weight", [256, 1, 1, 1], F32),
            tensor("blk.0.ffn_gate_inp.weight", [256, 8, 1, 1], F32),
            tensor("blk.0.ffn_down_exps.weight", [96, 256, 8, 1], BF16),
            tensor("blk.0.attn_q.weight", [256, 250, 1, 1], BF16),
            tensor("output.weight", [256, 512, 1, 1], BF16),
        ]
    }

    fn types(recipe: &Recipe) -> Vec<Option<QuantType>> {
        decide(recipe, &model()).expect("valid").into_iter().map(|d| d.to).collect()
    }

    fn recipe(name: &str) -> Recipe {
        Recipe::new(Ftype::parse(name).expect("known"))
    }

    #[test]
    fn rules_apply_in_order() {
        let mut r = recipe("iq4_ks");
        assert_eq!(types(&r), [Some(IQ4_KS), None, None, Some(IQ4_NL), Some(IQ4_KS), Some(Q6_K)]);
        r.pure = true;
        assert_eq!(types(&r)[5], Some(IQ4_KS));
        r.custom = CustomRule::parse_list(r"attn_q=q8_0, token_embd=q4_0,attn=q6_k").expect("valid");
        r.token_embedding_type = Some(Q8_0);
        r.ffn_gate_inp_type = Some(Q8_0);
        assert_eq!(types(&r), [Some(Q8_0), None, Some(Q8_0), Some(IQ4_NL), Some(Q8_0), Some(IQ4_KS)]);
    }

    #[test]
    fn shapes_have_the_last_word_and_say_so() {
        let mut r = recipe("q4_0_r8");
        let d = decide(&r, &model()).expect("valid");
        assert_eq!(d[0].to, Some(Q4_0), "embedding rows must be reachable");
        assert_eq!(d[4].to, Some(Q4_0), "250 rows are not groups of 8");
        assert!(d[4].reason.contains("250 rows"), "{}", d[4].reason);
        r = recipe("q4_k");
        let d = decide(&r, &model()).expect("valid");
        assert_eq!((d[3].to, d[3].fallback_from), (Some(Q5_0), Some(Q4_K)));
        assert!(d[3].reason.contains("rows of 96 are not a multiple of 256"), "{}", d[3].reason);
    }

    #[test]
    fn what_is_there_already_is_copied() {
        assert_eq!(types(&recipe("bf16"))[4], None);
    }

    #[test]
    fn rules_that_cannot_be_meant_are_errors() {
        let mut r = recipe("q8_0");
        r.custom = CustomRule::parse_list("atn_q=q8_0").expect("valid");
        assert!(decide(&r, &model()).is_err_and(|e| e.to_string().contains("atn_q=q8_0")));
        assert!(CustomRule::parse_list("attn_q:q8_0").is_err_and(|e| e.to_string().contains("no `=`")));
        assert!(CustomRule::parse_list("attn_(q=q8_0").is_err());
        assert!(CustomRule::parse_list("attn_q=q9_0").is_err_and(|e| e.to_string().contains("did you mean")));
        assert!(decide(&recipe("q4_k_m"), &model()).is_err_and(|e| e.to_string().contains("Q4_K_M")));
    }
}
