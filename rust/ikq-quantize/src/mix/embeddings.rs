//! Rules for the output matrix and the token embeddings, the same in all groups.

use ikq_formats::QuantType::*;

use super::For::{Any, Bases, Types};
use super::When::{Falcon, OddRow, Tied};
use super::{Rule, rules};

/// `output.weight`, or the token embedding that serves as one.
pub(super) const OUTPUT: &[Rule] = rules! {
    "", Any, [Falcon] => Some(Q8_0);
    "", Any, [OddRow] => Some(Q8_0);
    "", Types(LOW), [Tied] => Some(IQ4_K);
    "", Types(LOW), [] => Some(Q5_K);
    "", Types("IQ2_XXS_R4 IQ2_XS_R4"), [Tied] => Some(IQ4_K_R4);
    "", Types("IQ2_XXS_R4 IQ2_XS_R4"), [] => Some(Q5_K_R4);
    "", Types("IQ3_S IQ3_S_R4 IQ3_M IQ3_KL IQ4_XS IQ4_KS IQ4_KS_R4 IQ4_KSS"), [Tied] => Some(IQ5_K);
    "", Bases(&[Q8_0, Q8_0_R8, IQ6_K, Q6_K_R4, Q8_K_R8, Q8_KV, Q8_KV_R8]), [] => None;
    "", Any, [] => Some(Q6_K);
};

/// TYPEs of three bits and fewer.
const LOW: &str = "IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ2_M_R4 IQ3_XXS IQ3_XXS_R4 IQ1_S IQ1_M IQ1_S_R4 IQ1_M_R4 IQ2_K \
    IQ2_K_R4 IQ3_K IQ3_K_R4 IQ2_KS IQ3_KS IQ2_KL IQ1_KT IQ2_KT IQ3_KT";

/// Embeddings that are looked up row by row.
pub(super) const LOOKED_UP: &[Rule] = rules! {
    "token_embd", Types("IQ1_S IQ1_M IQ1_S_R4 IQ1_M_R4 IQ2_XXS IQ2_XS IQ2_XXS_R4 IQ2_XS_R4"), [] => Some(Q2_K);
    "token_embd", Types("IQ2_S IQ2_M IQ2_M_R4 IQ3_XXS IQ3_KT"), [] => Some(IQ3_S);
    "token_embd", Types("IQ3_XXS_R4"), [] => Some(IQ3_K);
    "token_embd", Types("IQ1_BN IQ2_BN IQ2_BN_R4"), [] => Some(IQ4_NL);
};
