//! Rules of the TYPEs of one and two bits.

use ikq_formats::QuantType::*;

use super::For::{Any, Types};
use super::When::{BlockZero, Experts, FirstEighth, FirstEighthMet, Gqa};
use super::{Rule, rules};

/// The list of a TYPE of these groups.
pub(super) fn rules(ftype: &str) -> Option<&'static [Rule]> {
    match ftype {
        "IQ1_S_R4" | "IQ1_M_R4" => Some(INTERLEAVED),
        "IQ2_KT" => Some(TRELLIS),
        "IQ1_S" | "IQ1_M" | "IQ2_XXS" | "IQ2_XS" | "IQ2_S" | "IQ2_M" | "IQ2_KS" | "IQ2_XXS_R4"
        | "IQ2_XS_R4" | "IQ2_M_R4" => Some(CODEBOOK),
        _ => None,
    }
}

const INTERLEAVED: &[Rule] = rules! {
    "attn_v.weight", Any, [Experts(4)] => Some(IQ4_K_R4);
    "attn_v.weight", Any, [Gqa(4)] => Some(IQ4_K_R4);
    "attn_v.weight", Any, [Gqa(2)] => Some(IQ3_K_R4);
    "attn_v.weight", Any, [] => Some(Q2_K_R4);
    "attn_k", Any, [Experts(8)] => Some(Q4_K_R4);
    "ffn_down", Any, [Experts(8), BlockZero] => Some(IQ3_K_R4);
    "ffn_gate", Any, [Experts(8), BlockZero] => Some(IQ3_K_R4);
    "ffn_up", Any, [Experts(8), BlockZero] => Some(IQ3_K_R4);
    "attn_q", Any, [Experts(8)] => Some(Q4_K_R4);
    "attn_qkv.weight", Any, [] => Some(IQ2_K_R4);
    "_shexp.weight", Any, [] => Some(IQ4_K_R4);
    "ffn_down", Any, [FirstEighth] => Some(Q2_K_R4);
    "attn_output.weight", Any, [Experts(4)] => Some(Q5_K_R4);
    "attn_output.weight", Any, [] => Some(IQ2_K_R4);
};

const TRELLIS: &[Rule] = rules! {
    "attn_v.weight", Any, [Experts(4)] => Some(IQ4_K);
    "attn_v.weight", Any, [Gqa(4)] => Some(IQ4_K);
    "attn_v.weight", Any, [Gqa(2)] => Some(IQ3_K);
    "attn_v.weight", Any, [] => Some(Q2_K);
    "attn_k", Any, [Experts(8)] => Some(Q4_K);
    "ffn_down", Any, [Experts(8), BlockZero] => Some(IQ3_K);
    "ffn_gate", Any, [Experts(8), BlockZero] => Some(IQ3_K);
    "ffn_up", Any, [Experts(8), BlockZero] => Some(IQ3_K);
    "attn_q", Any, [Experts(8)] => Some(Q4_K);
    "attn_qkv.weight", Any, [] => Some(IQ3_K);
    "_shexp.weight", Any, [] => Some(IQ4_K);
    "ffn_down", Any, [FirstEighth] => Some(IQ3_K);
    "attn_output.weight", Any, [Experts(4)] => Some(Q5_K);
    "attn_output.weight", Any, [] => Some(IQ3_K);
};

/// Those of this group with more than two bits.
const M: &str = "IQ2_S IQ2_M IQ2_M_R4";

const CODEBOOK: &[Rule] = rules! {
    "attn_v.weight", Any, [Gqa(4)] => Some(IQ4_K);
    "attn_v.weight", Any, [Experts(4)] => Some(IQ4_K);
    "attn_v.weight", Any, [Gqa(2)] => Some(IQ3_K);
    "attn_v.weight", Any, [Experts(2)] => Some(IQ3_K);
    "attn_v.weight", Types(M), [] => Some(IQ3_S);
    "attn_v.weight", Any, [] => Some(Q2_K);
    "attn_k", Any, [Experts(8)] => Some(Q4_K);
    "attn_q", Any, [Experts(8)] => Some(Q4_K);
    "attn_qkv.weight", Types(M), [] => Some(IQ3_XXS);
    "attn_qkv.weight", Any, [] => Some(IQ2_K);
    "ffn_down", Types(M), [FirstEighthMet] => Some(IQ3_S);
    "ffn_down", Any, [FirstEighthMet] => Some(Q2_K);
    "attn_output.weight", Any, [Experts(4)] => Some(Q5_K);
    "attn_output.weight", Types("IQ1_S IQ1_M"), [] => Some(IQ2_K);
    "attn_output.weight", Types(M), [] => Some(IQ3_S);
};
