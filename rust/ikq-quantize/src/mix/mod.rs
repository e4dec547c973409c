//! Named mixes: which type each tensor of a model gets under a TYPE such as `Q4_K_M`, exactly as
//! ik_llama.cpp decides it.
//!
//! The rules are data: a [`Rule`] says for which part of a tensor's name, under which TYPEs and
//! [`When`] what type is given. Rules are tried in order, and the first that applies decides; if none
//! does, the tensor gets the TYPE's base. Four lists hold them:
//!
//! | list | TYPEs |
//! |---|---|
//! | [`embeddings`] | all: `output.weight` and the token embeddings |
//! | [`low_bit`] | three groups of one and two bits |
//! | [`general`] | all others |
//!
//! Some rules count the tensors of their kind met so far, so that decisions depend on the order of
//! tensors in the file.

pub mod facts;

mod embeddings;
mod general;
mod low_bit;
mod when;

use ikq_formats::QuantType;

use crate::ftype::Ftype;
use facts::Facts;
use when::When;

/// TYPEs that a rule is for.
enum For {
    /// All.
    Any,
    /// Those of these names, separated by blanks.
    Types(&'static str),
    /// Those of these bases.
    Bases(&'static [QuantType]),
}

/// One rule.
struct Rule {
    /// Looked for anywhere in the tensor's name.
    part: &'static str,
    of: For,
    /// All of these must hold.
    when: &'static [When],
    /// What the tensor gets; `None`: the base.
    to: Option<QuantType>,
}

/// `part, TYPEs, [conditions] => type;`
macro_rules! rules {
    ($($part:literal, $of:expr, [$($when:expr),*] => $to:expr;)*) => {
        &[$($crate::mix::Rule { part: $part, of: $of, when: &[$($when),*], to: $to }),*]
    };
}
use rules;

/// The parts of names whose tensors are counted.
const COUNTED: [&str; 4] = ["attn_v.weight", "ffn_down", "ffn_gate", "ffn_up"];

/// The rules of one TYPE on one model, with the tensors met so far.
pub struct Mix<'a> {
    ftype: Ftype,
    base: QuantType,
    facts: &'a Facts,
    has_imatrix: bool,
    met: [u32; COUNTED.len()],
}

/// A tensor as a rule sees it.
struct Subject<'a> {
    name: &'a str,
    n_per_row: u64,
    /// Number among the tensors of its kind, and its layer for rules about layers (the same, but in
    /// models with experts, where it is parsed from the name).
    number: u32,
    layer: u32,
    n_layers: u32,
    facts: &'a Facts,
    has_imatrix: bool,
}

impl<'a> Mix<'a> {
    /// The rules of `ftype` (whose base is `base`) for a model.
    pub fn new(ftype: Ftype, base: QuantType, facts: &'a Facts, has_imatrix: bool) -> Mix<'a> {
        Mix { ftype: ftype.canonical(), base, facts, has_imatrix, met: [0; COUNTED.len()] }
    }

    /// The type of the next tensor in file order and the rule behind it; `None`: no rule names it,
    /// it gets the base.
    pub fn next(&mut self, name: &str, n_per_row: u64) -> Option<(QuantType, String)> {
        let is_output = name == "output.weight" || self.facts.is_tied && name == "token_embd.weight";
        let rules = match name {
            _ if is_output => embeddings::OUTPUT,
            "token_embd.weight" | "per_layer_token_embd.weight" => embeddings::LOOKED_UP,
            _ => low_bit::rules(self.ftype.name).unwrap_or(general::RULES),
        };
        let subject = self.subject(name, n_per_row);
        let rule = rules.iter().find(|r| self.applies(r, &subject))?;
        let to = rule.to?;
        let mut reason = format!("{} rule", self.ftype.name);
        let conditions: Vec<String> = rule.when.iter().map(ToString::to_string).collect();
        let what =
            if is_output { if self.facts.is_tied { "output, tied" } else { "output" } } else { rule.part };
        reason += &format!(" for {}", what.trim_end_matches(".weight"));
        if !conditions.is_empty() {
            reason += &format!(" ({})", conditions.join(", "));
        }
        Some((to, reason))
    }

    /// Counts the tensor and tells its place.
    fn subject<'b>(&mut self, name: &'b str, n_per_row: u64) -> Subject<'b>
    where
        'a: 'b,
    {
        let facts = self.facts;
        let mut subject = Subject {
            name,
            n_per_row,
            number: 0,
            layer: 0,
            n_layers: facts.n_layers,
            facts,
            has_imatrix: self.has_imatrix,
        };
        if let Some(kind) = COUNTED.iter().position(|part| name.contains(part)) {
            subject.number = self.met[kind];
            subject.layer = subject.number;
            self.met[kind] += 1;
            if kind == 0 {
                subject.n_layers = facts.n_attn_v;
            } else if facts.n_experts > 1 {
                subject.layer = layer_of(name).unwrap_or(subject.number);
            }
        }
        subject
    }

    fn applies(&self, rule: &Rule, subject: &Subject) -> bool {
        subject.name.contains(rule.part)
            && match rule.of {
                For::Any => true,
                For::Types(names) => names.split(' ').any(|n| n == self.ftype.name),
                For::Bases(bases) => bases.contains(&self.base),
            }
            && rule.when.iter().all(|w| w.holds(subject))
    }
}

/// N of `blk.N.`.
fn layer_of(name: &str) -> Option<u32> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}
