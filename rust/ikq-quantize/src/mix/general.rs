//! Rules of all TYPEs that have no list of their own.
//!
//! A name can hold several parts: a fused `attn_qkv` counts as `attn_q`, which is why the list ends the
//! search there, and `ffn_gate_up_exps` as `ffn_gate`.

use ikq_formats::QuantType::*;

use super::For::{Any, Bases, Types};
use super::When::*;
use super::{Rule, rules};

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = rules! {
    "attn_v.weight", Any, [Experts(4)] => Some(Q8_0);
    "attn_v.weight", Bases(&[Q3_K, Q4_K]), [Is70B] => Some(Q5_K);
    "attn_v.weight", Bases(&[IQ3_K]), [Is70B] => Some(IQ5_K);
    "attn_v.weight", Any, [Is70B] => None;
    "attn_v.weight", Types("Q2_K"), [Gqa(4)] => Some(Q4_K);
    "attn_v.weight", Types("Q2_K"), [] => Some(Q3_K);
    "attn_v.weight", Types("IQ2_K"), [Gqa(2)] => Some(IQ4_K);
    "attn_v.weight", Types("IQ2_K"), [] => Some(IQ3_K);
    "attn_v.weight", Types("IQ2_K_R4"), [Gqa(2)] => Some(IQ4_K_R4);
    "attn_v.weight", Types("IQ2_K_R4"), [] => Some(IQ3_K_R4);
    "attn_v.weight", Types("Q2_K_S"), [Gqa(4)] => Some(Q4_K);
    "attn_v.weight", Types("Q2_K_R4"), [Gqa(4)] => Some(Q4_K_R4);
    "attn_v.weight", Types("IQ3_XXS"), [Gqa(4)] => Some(Q4_K);
    "attn_v.weight", Types("IQ3_XXS"), [Gqa(2)] => Some(IQ3_K);
    "attn_v.weight", Types("IQ3_XXS"), [NoImatrix] => Some(IQ3_S);
    "attn_v.weight", Types("IQ3_XXS"), [] => None;
    "attn_v.weight", Types("IQ3_KT"), [Gqa(4)] => Some(IQ4_K);
    "attn_v.weight", Types("IQ3_KT"), [] => Some(IQ3_K);
    "attn_v.weight", Types("IQ4_KT"), [Gqa(4)] => Some(IQ5_K);
    "attn_v.weight", Types("IQ4_KT"), [] => Some(IQ4_K);
    "attn_v.weight", Types("IQ3_XXS_R4"), [Gqa(4)] => Some(Q4_K_R4);
    "attn_v.weight", Types("IQ3_XXS_R4"), [Gqa(2)] => Some(IQ3_K_R4);
    "attn_v.weight", Types("IQ3_XXS_R4"), [NoImatrix] => Some(IQ3_K_R4);
    "attn_v.weight", Types("IQ3_XXS_R4"), [] => None;
    "attn_v.weight", Types("IQ3_XS IQ3_S IQ3_K"), [Gqa(2)] => Some(IQ4_K);
    "attn_v.weight", Types("IQ3_S_R4 IQ3_K_R4"), [Gqa(2)] => Some(IQ4_K_R4);
    "attn_v.weight", Types("IQ3_KS IQ2_KL"), [Gqa(2)] => Some(IQ4_KS);
    "attn_v.weight", Types("IQ3_KL IQ3_M"), [Gqa(2)] => Some(IQ5_K);
    "attn_v.weight", Types("IQ3_KL IQ3_M"), [] => Some(IQ4_K);
    "attn_v.weight", Types("Q3_K_M"), [First(2)] => Some(Q5_K);
    "attn_v.weight", Types("Q3_K_M"), [] => Some(Q4_K);
    "attn_v.weight", Types("Q3_K_L"), [] => Some(Q5_K);
    "attn_v.weight", Types("IQ4_NL IQ4_XS IQ4_NL_R4 IQ4_XS_R8 IQ4_KS IQ4_KSS IQ4_K IQ4_K_R4"), [Gqa(2)] => Some(IQ5_K);
    "attn_v.weight", Types("IQ4_KS_R4"), [Gqa(2)] => Some(IQ5_K_R4);
    "attn_v.weight", Types("Q4_K_M Q5_K_M"), [MoreBits] => Some(Q6_K);
    "attn_v.weight", Types("Q4_K_S Q4_K_R4"), [First(4)] => Some(Q5_K);
    "attn_v.weight", Types("Q5_K_S"), [Llama3Like] => Some(Q6_K);
    "attn_v.weight", Types("IQ5_K IQ5_KS"), [Llama3Like] => Some(IQ6_K);
    "attn_v.weight", Types("Q5_K_S IQ5_K IQ5_KS"), [] => None;
    "attn_v.weight", Bases(&[Q2_K, IQ3_XXS]), [Gqa(4)] => Some(IQ3_S);
    "attn_v.weight", Bases(&[Q2_K_R4, IQ3_XXS_R4]), [Gqa(4)] => Some(IQ3_K_R4);
    "attn_v.weight", Bases(&[Q3_K, IQ3_S]), [Gqa(4)] => Some(Q4_K);
    "attn_v.weight", Bases(&[IQ3_K]), [Gqa(4)] => Some(IQ4_K);
    "attn_v.weight", Bases(&[IQ3_KS, IQ2_KL]), [Gqa(4)] => Some(IQ4_KS);
    "attn_v.weight", Bases(&[IQ3_S_R4, Q3_K_R4]), [Gqa(4)] => Some(Q4_K_R4);
    "attn_v.weight", Types("Q4_K_M"), [Gqa(4), NotDflash] => Some(Q5_K);
    "attn_v.weight", Types("Q5_K_M"), [Gqa(4), NotDflash] => Some(Q6_K);
    "attn_v.weight", Types("Q4_K_M Q5_K_M"), [] => None;
    "attn_v.weight", Bases(&[Q4_K, IQ4_XS, IQ4_NL, IQ4_NL_R4, IQ4_XS_R8]), [Gqa(4)] => Some(Q5_K);
    "attn_v.weight", Bases(&[IQ4_K, IQ4_KS]), [Gqa(4)] => Some(IQ5_K);
    "attn_v.weight", Bases(&[Q5_K]), [Gqa(4)] => Some(Q6_K);
    "attn_v.weight", Any, [] => None;

    "attn_k", Any, [Experts(4)] => Some(Q8_0);
    "attn_k", Types("IQ3_XS"), [] => Some(IQ3_XXS);
    "attn_k", Types("IQ3_XXS IQ3_XXS_R4"), [] => Some(IQ2_S);
    "attn_k", Any, [] => None;

    "attn_q", Types("IQ3_XS"), [] => Some(IQ3_XXS);
    "attn_q", Types("IQ3_XXS IQ3_XXS_R4"), [] => Some(IQ2_S);
    "attn_q", Types("Q5_K_S"), [Llama3Like] => Some(Q4_K);
    "attn_q", Types("IQ5_K"), [Llama3Like] => Some(IQ4_K);
    "attn_q", Types("IQ5_KS"), [Llama3Like] => Some(IQ4_KS);
    "attn_q", Any, [] => None;

    "ffn_down", Types("Q2_K"), [] => Some(Q3_K);
    "ffn_down", Types("Q2_K_S"), [FirstEighth] => Some(Q4_K);
    "ffn_down", Types("Q2_K_R4"), [FirstEighth] => Some(Q4_K_R4);
    "ffn_down", Types("IQ3_XXS"), [NoImatrix, FirstEighth] => Some(Q4_K);
    "ffn_down", Types("IQ3_XXS"), [NoImatrix] => Some(Q3_K);
    "ffn_down", Types("IQ3_KT"), [NoImatrix, FirstEighth] => Some(IQ4_K);
    "ffn_down", Types("IQ3_KT"), [NoImatrix] => Some(IQ3_K);
    "ffn_down", Types("IQ3_XXS_R4"), [NoImatrix, FirstEighth] => Some(Q4_K_R4);
    "ffn_down", Types("IQ3_XXS_R4"), [NoImatrix] => Some(IQ3_K_R4);
    "ffn_down", Types("Q3_K_M"), [FirstSixteenth] => Some(Q5_K);
    "ffn_down", Types("Q3_K_M"), [NotFalcon] => Some(Q4_K);
    "ffn_down", Types("Q3_K_M"), [MoreBits] => Some(Q4_K);
    "ffn_down", Types("Q3_K_M"), [] => Some(Q3_K);
    "ffn_down", Types("IQ3_M"), [FirstEighth] => Some(IQ4_K);
    "ffn_down", Types("IQ3_M"), [Experts(4), MoreBits] => Some(IQ4_K);
    "ffn_down", Types("Q3_K_L"), [Falcon] => Some(Q4_K);
    "ffn_down", Types("Q3_K_L"), [] => Some(Q5_K);
    "ffn_down", Types("IQ3_KL"), [MoreBits] => Some(IQ4_KS);
    "ffn_down", Types("IQ3_KL"), [] => Some(IQ3_K);
    "ffn_down", Types("Q4_K_M"), [Falcon, FirstSixteenth] => Some(Q6_K);
    "ffn_down", Types("Q4_K_M"), [Falcon, MoreBits] => Some(Q5_K);
    "ffn_down", Types("Q4_K_M"), [Falcon] => Some(Q4_K);
    "ffn_down", Types("Q4_K_M Q5_K_M"), [MoreBits] => Some(Q6_K);
    "ffn_down", Types("IQ4_NL IQ4_XS IQ4_KS IQ4_KSS IQ4_NL_R4 IQ4_XS_R8"), [NoImatrix, FirstEighth] => Some(Q5_K);
    "ffn_down", Types("IQ4_KS_R4"), [NoImatrix, FirstEighth] => Some(Q5_K_R4);
    "ffn_down", Types("Q4_K_S Q4_K_R4"), [NotFalcon, FirstEighth] => Some(Q5_K);
    "ffn_down", Types("Q4_0"), [Imatrix, FirstEighth] => Some(Q4_1);
    "ffn_down", Types("Q5_0"), [Imatrix, FirstEighth] => Some(Q5_1);
    "ffn_down", Types("Q4_0_R8"), [Imatrix, FirstEighth] => Some(IQ4_NL_R4);
    "ffn_down", Any, [] => None;

    "attn_output.weight", Types("Q3_K_L"), [Falcon] => Some(Q4_K);
    "attn_output.weight", Any, [Falcon] => None;
    "attn_output.weight", Types(MOE_OUTPUT_Q5_K), [Experts(4)] => Some(Q5_K);
    "attn_output.weight", Types("IQ2_KL"), [Experts(4)] => Some(IQ4_KS);
    "attn_output.weight", Any, [Experts(4)] => None;
    "attn_output.weight", Types("Q2_K"), [] => Some(Q3_K);
    "attn_output.weight", Types("IQ3_XXS"), [] => Some(IQ3_S);
    "attn_output.weight", Types("IQ3_KT"), [Gqa(4)] => Some(IQ3_K);
    "attn_output.weight", Types("IQ3_XXS_R4"), [] => Some(IQ3_K_R4);
    "attn_output.weight", Types("Q3_K_M"), [] => Some(Q4_K);
    "attn_output.weight", Types("Q3_K_L"), [] => Some(Q5_K);
    "attn_output.weight", Types("IQ3_M"), [] => Some(IQ4_K);
    "attn_output.weight", Types("IQ2_K"), [] => Some(IQ3_K);
    "attn_output.weight", Types("IQ2_K_R4"), [] => Some(IQ3_K_R4);
    "attn_output.weight", Types("IQ3_KL"), [] => Some(IQ4_KS);

    "ffn_gate", Types("IQ3_XS"), [Middle] => Some(IQ3_XXS);
    "ffn_gate", Types("IQ3_KL"), [MoreBits] => Some(IQ4_KS);
    "ffn_gate", Any, [] => None;
    "ffn_up", Types("IQ3_XS"), [Middle] => Some(IQ3_XXS);
    "ffn_up", Types("IQ3_KL"), [MoreBits] => Some(IQ4_KS);
};

/// TYPEs whose attention output is small beside the experts and worth more bits.
const MOE_OUTPUT_Q5_K: &str = "Q2_K Q2_K_R4 Q3_K_S Q3_K_M Q3_K_R4 Q4_K_S Q4_K_M Q4_K_R4 IQ3_XS IQ3_XXS IQ3_XXS_R4 IQ3_S \
    IQ3_S_R4 IQ3_M IQ4_NL IQ4_NL_R4 IQ4_XS IQ4_XS_R8 IQ2_K IQ2_K_R4 IQ3_K IQ3_K_R4 IQ3_KL IQ3_KS IQ3_KT IQ4_K \
    IQ4_K_R4 IQ4_KS IQ4_KS_R4 IQ4_KSS IQ5_KS IQ5_KS_R4";
