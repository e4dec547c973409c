//! From wishes to a type per tensor: the steps, in the order in which they apply.
//!
//! | # | step | says |
//! |--:|---|---|
//! | 1 | never quantized | copied: norms, vectors, integers, convolutions, positions, the router without its option |
//! | 2 | TYPE | the base type |
//! | 3 | rules of TYPE ([`crate::mix`]; not with `--pure`, not for float bases) | by name, layer, experts, heads |
//! | 4 | `--attn-*-type`, `--ffn-*-type` ([`crate::roles`]) | by role |
//! | 5 | `--custom-q`, `--tensor-type`, `--tensor-type-file` | the first pattern found in the name |
//! | 6 | `--token-embedding-type`, `--output-tensor-type` and their like, `--leave-output-tensor` | win over all rules |
//! | 7 | row fallback | the type's chain when its block does not tile the row, F16 at the end |
//! | 8 | interleaved embedding | its plain twin: single rows must be reachable |
//! | 9 | row groups | the plain twin when the rows are not whole groups |
//!
//! Every decision carries its reason. Where ikq departs from the reference on purpose: roles and custom
//! rules hold under every TYPE, with `--pure` and for float bases; a fused `attn_qkv` has its own role; a
//! rule that matches nothing is an error; the fallback comes after the overrides and never fails; unknown
//! type names are refused.

use ikq_formats::{Family, QuantType, fallback_for_row, row_multiple};
use ikq_gguf::Tensor;

use crate::custom::CustomRule;
use crate::error::Error;
use crate::ftype::Ftype;
use crate::mix::Mix;
use crate::mix::facts::Facts;
use crate::roles::RoleTypes;

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub ftype: Ftype,
    /// The base type for everything that no explicit option names.
    pub pure: bool,
    pub roles: RoleTypes,
    pub custom: Vec<CustomRule>,
    pub token_embedding_type: Option<QuantType>,
    pub per_layer_token_embedding_type: Option<QuantType>,
    pub output_tensor_type: Option<QuantType>,
    pub ffn_gate_inp_type: Option<QuantType>,
    /// `output.weight` stays as it is.
    pub leave_output_tensor: bool,
}

impl Recipe {
    /// `--pure`: all tensors that can be quantized get TYPE; its rules do not apply.
    pub fn new(ftype: Ftype) -> Recipe {
        Recipe {
            ftype,
            pure: false,
            roles: RoleTypes::default(),
            custom: Vec::new(),
            token_embedding_type: None,
            per_layer_token_embedding_type: None,
            output_tensor_type: None,
            ffn_gate_inp_type: None,
            leave_output_tensor: false,
        }
    }
}

/// The type that was chosen for one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The type to write; `None`: the tensor is copied as it is.
    pub to: Option<QuantType>,
    /// The reason for the choice, as text for the user.
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
    ("per_layer_model_proj", "projection of layers' embeddings"),
];

/// Decides for all tensors of a model. Rules may count on statistics with `has_imatrix`.
///
/// # Errors
/// A custom rule that matches no tensor that can be quantized.
pub fn decide(
    recipe: &Recipe,
    facts: &Facts,
    has_imatrix: bool,
    tensors: &[Tensor],
) -> Result<Vec<Decision>, Error> {
    let rules = recipe.ftype.base.filter(|base| !recipe.pure && !is_float(*base));
    let mut mix = rules.map(|base| Mix::new(recipe.ftype, base, facts, has_imatrix));
    let mut matched = vec![false; recipe.custom.len()];
    let mut decisions = Vec::with_capacity(tensors.len());
    for t in tensors {
        decisions.push(match kept_because(t, recipe) {
            Some(reason) => Decision { to: None, reason, fallback_from: None },
            None => {
                // in file order: rules count
                let rule = mix.as_mut().and_then(|mix| mix.next(&t.name, t.ne[0]));
                decide_one(recipe, t, rule, facts.is_tied, &mut matched)
            }
        });
    }
    match matched.iter().position(|m| !m) {
        Some(rule) => Err(Error::UnmatchedRule { rule: recipe.custom[rule].to_string() }),
        None => Ok(decisions),
    }
}

/// Whether a type holds plain floats, interleaved or not.
fn is_float(ty: QuantType) -> bool {
    ty.info().base.unwrap_or(ty).info().family == Family::Float
}

fn decide_one(
    recipe: &Recipe,
    t: &Tensor,
    rule: Option<(QuantType, String)>,
    tied: bool,
    matched: &mut [bool],
) -> Decision {
    let Some((wanted, mut reason)) = wish(recipe, t, rule, tied, matched) else {
        return Decision { to: None, reason: "COPY".into(), fallback_from: None };
    };
    let mut to = wanted;
    let [n_per_row, rows, ..] = t.ne;
    if let Some(fallback) = fallback_for_row(to, usize::try_from(n_per_row).unwrap_or(usize::MAX)) {
        reason +=
            &format!("; {fallback} because rows of {n_per_row} are not a multiple of {}", row_multiple(to));
        to = fallback;
    }
    if let Some(plain) = plain_twin(to).filter(|_| t.name == EMBEDDING || t.name == PER_LAYER_EMBEDDING) {
        reason += &format!("; {plain} because single rows of an embedding must be reachable");
        to = plain;
    }
    if let Some(plain) = plain_twin(to).filter(|_| !rows.is_multiple_of(to.info().rows as u64)) {
        reason += &format!("; {plain} because {rows} rows are not groups of {}", to.info().rows);
        to = plain;
    }
    let fallback_from = (to != wanted).then_some(wanted);
    match t.ty.known() == Some(to) {
        true => Decision { to: None, reason: format!("is {to} already ({reason})"), fallback_from },
        false => Decision { to: Some(to), reason, fallback_from },
    }
}

/// The type of rows that cannot form whole groups of an interleaved type.
fn plain_twin(ty: QuantType) -> Option<QuantType> {
    match ty {
        // the same bits per weight, one row at a time
        QuantType::IQ1_S_R4 => Some(QuantType::IQ1_S),
        QuantType::IQ1_M_R4 => Some(QuantType::IQ1_M),
        QuantType::Q8_K_R8 | QuantType::Q8_K_R16 => Some(QuantType::Q8_0),
        QuantType::Q8_KV_R8 => Some(QuantType::Q8_KV),
        _ => ty.info().base,
    }
}

/// Why a tensor is never quantized, if so.
fn kept_because(t: &Tensor, recipe: &Recipe) -> Option<String> {
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
    if t.name.contains(ROUTER) && recipe.ffn_gate_inp_type.is_none() {
        return Some("router, kept (--ffn-gate-inp-type quantizes it)".into());
    }
    if t.name == OUTPUT && recipe.leave_output_tensor {
        return Some("--leave-output-tensor".into());
    }
    None
}

/// Steps 2 to 6: what the recipe wants, before shapes have their say.
fn wish(
    recipe: &Recipe,
    t: &Tensor,
    rule: Option<(QuantType, String)>,
    tied: bool,
    matched: &mut [bool],
) -> Option<(QuantType, String)> {
    let base = recipe.ftype.base.map(|b| (b, if recipe.pure { "--pure" } else { "base type" }.to_string()));
    let mut wanted = rule.or(base);
    if let Some(by_role) = recipe.roles.find(&t.name) {
        wanted = Some(by_role);
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
        wanted = Some((rule.ty, format!("custom rule `{}`", rule.pattern.as_str())));
    }
    let is_output = t.name == OUTPUT || tied && t.name == EMBEDDING;
    let options = [
        (is_output, recipe.output_tensor_type, "--output-tensor-type"),
        (t.name == EMBEDDING, recipe.token_embedding_type, "--token-embedding-type"),
        (
            t.name == PER_LAYER_EMBEDDING,
            recipe.per_layer_token_embedding_type,
            "--per-layer-token-embedding-type",
        ),
        (t.name.contains(ROUTER), recipe.ffn_gate_inp_type, "--ffn-gate-inp-type"),
    ];
    for (applies, ty, option) in options {
        if let Some(ty) = ty.filter(|_| applies) {
            wanted = Some((ty, option.to_string()));
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use QuantType::*;
    use ikq_gguf::{Bytes, TensorType};

    use crate::roles::Role;

    fn tensor(name: &str, ne: [u64; 4], ty: QuantType) -> Tensor {
        let n_dims = 4 - ne.iter().rev().take_while(|n| **n == 1).count() as u32;
        let data = Bytes::from(Vec::new());
        Tensor {
            name: name.into(),
            ne,
            n_dims,
            ty: TensorType::Known(ty),
            shard: 0,
            file_offset: 0,
            data,
            made: None,
        }
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

    fn decided(recipe: &Recipe) -> Vec<Decision> {
        let facts = Facts { n_layers: 1, ..Facts::default() };
        decide(recipe, &facts, false, &model()).expect("valid")
    }

    fn types(recipe: &Recipe) -> Vec<Option<QuantType>> {
        decided(recipe).into_iter().map(|d| d.to).collect()
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
        r.roles.set(Role::AttnQ, Q5_K);
        assert_eq!(types(&r)[4], Some(Q5_K), "an option holds with --pure");
        r.custom = CustomRule::parse_list(r"attn_q=q8_0, token_embd=q4_0,attn=q6_k").expect("valid");
        r.token_embedding_type = Some(Q8_0);
        r.ffn_gate_inp_type = Some(Q8_0);
        assert_eq!(types(&r), [Some(Q8_0), None, Some(Q8_0), Some(IQ4_NL), Some(Q8_0), Some(IQ4_KS)]);
        r.leave_output_tensor = true;
        assert_eq!(types(&r)[5], None);
    }

    #[test]
    fn options_reach_float_bases_and_copies() {
        for name in ["bf16", "copy"] {
            let mut r = recipe(name);
            assert_eq!(types(&r)[3..], [None, None, None], "{name}");
            r.roles.set(Role::AttnQ, Q8_0);
            r.custom = CustomRule::parse_list("output=q6_k").expect("valid");
            assert_eq!(types(&r)[3..], [None, Some(Q8_0), Some(Q6_K)], "{name}");
        }
    }

    #[test]
    fn shapes_have_the_last_word_and_say_so() {
        let mut r = recipe("q4_0_r8");
        let d = decided(&r);
        assert_eq!(d[0].to, Some(Q4_0), "embedding rows must be reachable");
        assert_eq!(d[4].to, Some(Q4_0), "250 rows are not groups of 8");
        assert!(d[4].reason.contains("250 rows"), "{}", d[4].reason);
        r = recipe("q4_k_s");
        let d = decided(&r);
        assert_eq!((d[3].to, d[3].fallback_from), (Some(Q5_0), Some(Q4_K)));
        assert!(d[3].reason.contains("rows of 96 are not a multiple of 256"), "{}", d[3].reason);
    }

    #[test]
    fn a_mix_says_its_rule() {
        let d = decided(&recipe("q3_k_l"));
        assert_eq!((d[3].to, d[5].to), (Some(Q6_0), Some(Q6_K)), "Q5_K, and the fallback of its row");
        assert!(d[3].reason.starts_with("Q3_K_L rule for ffn_down"), "{}", d[3].reason);
        assert_eq!(d[5].reason, "Q3_K_L rule for output");
    }

    #[test]
    fn rules_that_cannot_be_meant_are_errors() {
        let mut r = recipe("q8_0");
        r.custom = CustomRule::parse_list("atn_q=q8_0").expect("valid");
        let decided = decide(&r, &Facts::default(), false, &model());
        assert!(decided.is_err_and(|e| e.to_string().contains("atn_q=q8_0")));
    }
}
