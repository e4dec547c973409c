//! `--repack` and `--unrepack`: the same model with rows in groups, or out of them; no bit of a code changes.
//!
//! | tensor | `--repack` | `--unrepack` |
//! |---|---|---|
//! | a plain type with an interleaved form, rows whole groups | that form | kept |
//! | the same, rows no whole groups | kept | kept |
//! | `token_embd`, `per_layer_token_embd` | kept: single rows are looked up | its plain type, where interleaved |
//! | an interleaved type with a plain twin | kept | its plain twin |
//! | Q8_K_R8, Q8_K_R16, Q8_KV_R8, IQ1_S_R4, IQ1_M_R4 | kept | kept: nothing plain holds the same |
//! | others | kept | kept |
//!
//! The choice for `--repack` is that of ik_llama.cpp, but for BF16 (there only on some machines) and F16 (never here:
//! BF16_R16 has fewer digits). Both say for every tensor why it is kept, and refuse where none would change.

use ikq_formats::{Family, QuantType};
use ikq_gguf::Tensor;
use regex::Regex;

use crate::error::Error;
use crate::ftype::Ftype;
use crate::recipe::Decision;

/// The direction of a repacking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Together,
    Apart,
}

impl Direction {
    /// The option that asks for it.
    pub fn option(self) -> &'static str {
        match self {
            Direction::Together => "--repack",
            Direction::Apart => "--unrepack",
        }
    }
}

/// A repacking of a model.
#[derive(Clone, Debug)]
pub struct Repack {
    pub direction: Direction,
    /// Only tensors with one of these in their names; empty: all.
    pub patterns: Vec<Regex>,
}

impl Repack {
    /// `patterns` are comma-separated lists of regular expressions.
    ///
    /// # Errors
    /// [`Error::RepackPattern`].
    pub fn new(direction: Direction, patterns: &[String]) -> Result<Repack, Error> {
        let texts = patterns.iter().flat_map(|list| list.split(',')).map(str::trim).filter(|t| !t.is_empty());
        let parse = |text: &str| {
            let why = |e: regex::Error| {
                e.to_string().lines().last().unwrap_or_default().trim().replace("error: ", "")
            };
            Regex::new(text).map_err(|e| Error::RepackPattern { pattern: text.to_string(), why: why(e) })
        };
        Ok(Repack { direction, patterns: texts.map(parse).collect::<Result<_, _>>()? })
    }

    /// Decides for all tensors of a model.
    ///
    /// # Errors
    /// [`Error::RepackPattern`] for a pattern that matches nothing that changes, [`Error::NothingToRepack`].
    pub(crate) fn decide(&self, tensors: &[Tensor]) -> Result<Vec<Decision>, Error> {
        let wishes: Vec<Result<QuantType, String>> = tensors.iter().map(|t| self.wish(t)).collect();
        for pattern in &self.patterns {
            let matches = |(t, wish): (&Tensor, &Result<_, _>)| wish.is_ok() && pattern.is_match(&t.name);
            if !tensors.iter().zip(&wishes).any(matches) {
                let why = format!("it matches no tensor that {} changes", self.direction.option());
                return Err(Error::RepackPattern { pattern: pattern.to_string(), why });
            }
        }
        if !wishes.iter().any(Result::is_ok) {
            return Err(Error::NothingToRepack {
                option: self.direction.option(),
                what: match self.direction {
                    Direction::Together => "of a type with an interleaved form",
                    Direction::Apart => "of an interleaved type with a plain twin",
                },
            });
        }
        let decided = tensors.iter().zip(wishes).map(|(t, wish)| {
            let (to, reason) = match wish {
                Err(reason) => (None, reason),
                Ok(_) if !self.names(&t.name) => (None, "--repack-pattern does not name it".to_string()),
                Ok(to) => (Some(to), self.direction.option().to_string()),
            };
            Decision { to, reason, fallback_from: None }
        });
        Ok(decided.collect())
    }

    /// The value of `general.file_type` in the output.
    pub(crate) fn file_type(&self, old: Option<u64>) -> Option<u32> {
        let old = u32::try_from(old?).ok()?;
        let base = Ftype::all().find(|f| f.id == Some(old))?.base?;
        let new = match self.direction {
            Direction::Together => together(base),
            Direction::Apart => base.info().base,
        };
        Ftype::of_type(new?)?.canonical().id
    }

    fn names(&self, tensor: &str) -> bool {
        self.patterns.is_empty() || self.patterns.iter().any(|p| p.is_match(tensor))
    }

    /// The type that a tensor would get, or why it is kept.
    fn wish(&self, t: &Tensor) -> Result<QuantType, String> {
        let Some(ty) = t.ty.known() else { return Err(format!("{} is copied", t.ty)) };
        match self.direction {
            Direction::Apart if !ty.is_interleaved() => Err("is not interleaved".to_string()),
            Direction::Apart => {
                ty.info().base.ok_or_else(|| format!("kept: no plain type holds what {ty} does"))
            }
            Direction::Together if ty.is_interleaved() => Err("is interleaved already".to_string()),
            Direction::Together
                if matches!(ty.info().family, Family::Float | Family::Integer) && ty != QuantType::BF16 =>
            {
                Err(format!("{ty} is copied"))
            }
            Direction::Together => {
                let twin = together(ty).ok_or_else(|| format!("kept: {ty} has no interleaved form"))?;
                let group = twin.info().rows;
                if matches!(t.name.as_str(), "token_embd.weight" | "per_layer_token_embd.weight") {
                    return Err("kept: single rows of an embedding must be reachable".to_string());
                }
                match t.ne[1].is_multiple_of(group as u64) {
                    true => Ok(twin),
                    false => Err(format!("kept: {} rows are not groups of {group}", t.ne[1])),
                }
            }
        }
    }
}

/// The interleaved type that holds the codes and scales of `ty`; of several the one that is in use.
fn together(ty: QuantType) -> Option<QuantType> {
    match ty {
        // its rows also have the sums of their codes, which follow from the codes
        QuantType::Q8_KV => Some(QuantType::Q8_KV_R8),
        _ => QuantType::ALL.iter().copied().rfind(|t| t.info().base == Some(ty)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use QuantType::*;
    use ikq_gguf::{Bytes, TensorType};

    fn tensor(name: &str, ty: QuantType, rows: u64) -> Tensor {
        let (ty, data) = (TensorType::Known(ty), Bytes::from(Vec::new()));
        Tensor {
            name: name.into(),
            ne: [256, rows, 2, 1],
            n_dims: 3,
            ty,
            shard: 0,
            file_offset: 0,
            data,
            made: None,
        }
    }

    fn types(
        direction: Direction,
        patterns: &[&str],
        tensors: &[Tensor],
    ) -> Result<Vec<Option<QuantType>>, Error> {
        let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        let decided = Repack::new(direction, &patterns)?.decide(tensors)?;
        Ok(decided.into_iter().map(|d| d.to).collect())
    }

    #[test]
    fn what_changes_together_and_apart() {
        let tensors = [
            tensor("token_embd.weight", Q4_0, 8),
            tensor("a", Q4_0, 8),
            tensor("b", Q4_0, 12),
            tensor("c", IQ4_KS, 12),
            tensor("d", F16, 16),
            tensor("e", BF16, 16),
            tensor("f", IQ2_K_R4, 8),
            tensor("g", Q8_K_R8, 8),
            tensor("h", Q8_KV, 8),
        ];
        let together = types(Direction::Together, &[], &tensors).expect("some change");
        let some = [Q4_0_R8, IQ4_KS_R4, BF16_R16, Q8_KV_R8].map(Some);
        assert_eq!(together, [None, some[0], None, some[1], None, some[2], None, None, some[3]]);
        let apart = types(Direction::Apart, &[], &tensors).expect("one changes");
        assert_eq!(apart.iter().flatten().collect::<Vec<_>>(), [&IQ2_K]);
        let named = types(Direction::Together, &["^a$,^c$", "^h"], &tensors).expect("some change");
        assert_eq!(named.iter().flatten().collect::<Vec<_>>(), [&Q4_0_R8, &IQ4_KS_R4, &Q8_KV_R8]);
    }

    #[test]
    fn what_changes_nothing_is_refused() {
        let tensors = [tensor("a", Q4_0, 8)];
        let message = |r: Result<_, Error>| r.map(drop).expect_err("refused").to_string();
        assert!(message(types(Direction::Apart, &[], &tensors)).contains("nothing for --unrepack"));
        assert!(message(types(Direction::Together, &["a,x"], &tensors)).contains("`x`"));
        assert!(message(types(Direction::Together, &["a("], &tensors)).contains("`a(`"));
    }

    #[test]
    fn file_types_follow() {
        let of = |direction, old| Repack { direction, patterns: Vec::new() }.file_type(Some(old));
        for (plain, packed) in [(15, 214), (2, 202), (139, 339), (29, 229), (32, 232)] {
            assert_eq!(of(Direction::Together, plain), Some(packed as u32));
            assert_eq!(of(Direction::Apart, packed), Some(plain as u32));
        }
        assert_eq!((of(Direction::Together, 149), of(Direction::Apart, 398)), (Some(398), None));
        // another mix of the same base
        assert_eq!(of(Direction::Together, 14), Some(214));
        assert_eq!((of(Direction::Together, 151), of(Direction::Together, 999)), (None, None));
    }
}
