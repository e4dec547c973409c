//! The names that `quantize` takes as its TYPE, and the numbers written to `general.file_type`.
//!
//! The numbers are ik_llama.cpp's; types that only llama.cpp knows have llama.cpp's. Number 41 is
//! Q1_0_G128 in the one and Q2_0 in the other: a reader must never derive a tensor's type from it.

use ikq_formats::QuantType;
use ikq_formats::types::closest;

use crate::error::Error;

/// What a TYPE stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ftype {
    /// Name in capitals, aliases as themselves.
    pub name: &'static str,
    /// `general.file_type`; `None` keeps the input's.
    pub id: Option<u32>,
    /// The type of a matrix that no rule says otherwise about; `None` keeps the tensor's own.
    pub base: Option<QuantType>,
}

/// Everything stays as it is (but what options name).
const COPY: Ftype = Ftype { name: "COPY", id: None, base: None };

#[rustfmt::skip]
const FTYPES: &[(&str, u32, QuantType)] = { use QuantType::*; &[
    ("F32", 0, F32),
    ("F16", 1, F16),
    ("Q4_0", 2, Q4_0),
    ("Q4_1", 3, Q4_1),
    ("Q8_0", 7, Q8_0),
    ("Q5_0", 8, Q5_0),
    ("Q5_1", 9, Q5_1),
    ("Q2_K", 10, Q2_K),
    ("Q3_K_S", 11, Q3_K),
    ("Q3_K_M", 12, Q3_K),
    ("Q3_K", 12, Q3_K),
    ("Q3_K_L", 13, Q3_K),
    ("Q4_K_S", 14, Q4_K),
    ("Q4_K_M", 15, Q4_K),
    ("Q4_K", 15, Q4_K),
    ("Q5_K_S", 16, Q5_K),
    ("Q5_K_M", 17, Q5_K),
    ("Q5_K", 17, Q5_K),
    ("Q6_K", 18, Q6_K),
    ("IQ2_XXS", 19, IQ2_XXS),
    ("IQ2_XS", 20, IQ2_XS),
    ("Q2_K_S", 21, Q2_K),
    ("IQ3_XS", 22, IQ3_S),
    ("IQ3_XXS", 23, IQ3_XXS),
    ("IQ1_S", 24, IQ1_S),
    ("IQ4_NL", 25, IQ4_NL),
    ("IQ3_S", 26, IQ3_S),
    ("IQ3_M", 27, IQ3_S),
    ("IQ2_S", 28, IQ2_XS),
    ("IQ2_M", 29, IQ2_S),
    ("IQ4_XS", 30, IQ4_XS),
    ("IQ1_M", 31, IQ1_M),
    ("BF16", 32, BF16),
    ("Q4_0_4_4", 33, Q4_0_4_4),
    ("Q4_0_4_8", 34, Q4_0_4_8),
    ("Q4_0_8_8", 35, Q4_0_8_8),
    ("TQ1_0", 36, TQ1_0),
    ("TQ2_0", 37, TQ2_0),
    ("MXFP4", 38, MXFP4),
    ("NVFP4", 39, NVFP4),
    ("Q1_0_G128", 41, Q1_0_G128),
    ("Q2_0", 41, Q2_0),
    ("Q6_0", 135, Q6_0),
    ("IQ1_BN", 136, IQ1_BN),
    ("IQ2_BN", 137, IQ2_BN),
    ("IQ2_K", 138, IQ2_K),
    ("IQ3_K", 139, IQ3_K),
    ("IQ4_K", 140, IQ4_K),
    ("IQ5_K", 141, IQ5_K),
    ("IQ6_K", 142, IQ6_K),
    ("IQ4_KS", 145, IQ4_KS),
    ("IQ3_KL", 146, IQ3_K),
    ("IQ2_KS", 147, IQ2_KS),
    ("IQ4_KSS", 148, IQ4_KSS),
    ("Q8_KV", 149, Q8_KV),
    ("IQ5_KS", 150, IQ5_KS),
    ("IQ2_KT", 151, IQ2_KT),
    ("IQ3_KT", 152, IQ3_KT),
    ("IQ4_KT", 153, IQ4_KT),
    ("IQ3_KS", 154, IQ3_KS),
    ("IQ2_KL", 155, IQ2_KL),
    ("IQ1_KT", 156, IQ1_KT),
    ("Q4_0_R8", 202, Q4_0_R8),
    ("Q8_0_R8", 207, Q8_0_R8),
    ("Q5_0_R4", 208, Q5_0_R4),
    ("Q2_K_R4", 210, Q2_K_R4),
    ("Q3_K_R4", 211, Q3_K_R4),
    ("Q4_K_R4", 214, Q4_K_R4),
    ("Q5_K_R4", 216, Q5_K_R4),
    ("Q6_K_R4", 218, Q6_K_R4),
    ("IQ2_XXS_R4", 219, IQ2_XXS_R4),
    ("IQ2_XS_R4", 220, IQ2_XS_R4),
    ("IQ3_XXS_R4", 223, IQ3_XXS_R4),
    ("IQ1_S_R4", 224, IQ1_S_R4),
    ("IQ4_NL_R4", 225, IQ4_NL_R4),
    ("IQ3_S_R4", 226, IQ3_S_R4),
    ("IQ2_M_R4", 229, IQ2_S_R4),
    ("IQ4_XS_R8", 230, IQ4_XS_R8),
    ("IQ1_M_R4", 231, IQ1_M_R4),
    ("BF16_R16", 232, BF16_R16),
    ("Q6_0_R4", 335, Q6_0_R4),
    ("IQ2_BN_R4", 337, IQ2_BN_R4),
    ("IQ2_K_R4", 338, IQ2_K_R4),
    ("IQ3_K_R4", 339, IQ3_K_R4),
    ("IQ4_K_R4", 340, IQ4_K_R4),
    ("IQ5_K_R4", 341, IQ5_K_R4),
    ("IQ4_KS_R4", 345, IQ4_KS_R4),
    ("IQ5_KS_R4", 350, IQ5_KS_R4),
    ("MXFP4_R8", 351, MXFP4_R8),
    ("Q8_KV_R8", 398, Q8_KV_R8),
    ("Q8_K_R8", 399, Q8_K_R8),
] };

impl Ftype {
    /// All names, in order of number, `COPY` last.
    pub fn all() -> impl Iterator<Item = Ftype> {
        let numbered = FTYPES.iter().map(|(name, id, base)| Ftype { name, id: Some(*id), base: Some(*base) });
        numbered.chain([COPY])
    }

    /// The TYPE that stands for a tensor type: that of the same name if its base is the type, else the
    /// first with that base (IQ2_M for IQ2_S, which names a mix of IQ2_XS).
    pub fn of_type(ty: QuantType) -> Option<Ftype> {
        let named = Ftype::all().find(|f| f.name == ty.name() && f.base == Some(ty));
        named.or_else(|| Ftype::all().find(|f| f.base == Some(ty)))
    }

    /// The name that rules know: Q4_K_M for Q4_K.
    pub fn canonical(self) -> Ftype {
        Ftype::all().find(|f| f.id == self.id && f.base == self.base).unwrap_or(self)
    }

    /// Finds a TYPE by name, any case, or by number (the first name with that number).
    ///
    /// # Errors
    /// [`Error::UnknownFtype`] with the closest names.
    pub fn parse(text: &str) -> Result<Ftype, Error> {
        let upper = text.trim().to_ascii_uppercase();
        let number = upper.parse::<u32>().ok();
        let upper = match upper.as_str() {
            "Q4_0_4X4" => "Q4_0_4_4",
            "Q4_0_4X8" => "Q4_0_4_8",
            "Q4_0_8X8" => "Q4_0_8_8",
            "Q1_0" => "Q1_0_G128",
            other => other,
        };
        Ftype::all().find(|f| f.name == upper || number.is_some() && f.id == number).ok_or_else(|| {
            Error::UnknownFtype {
                name: text.to_string(),
                suggestions: closest(upper, Ftype::all().map(|f| f.name)),
            }
        })
    }

    /// A mix with a name of its own: `Q4_K_M` is one, `IQ4_KS` the name of a type (whose rules may still
    /// give some tensors other types).
    pub fn is_mix(&self) -> bool {
        self.base.is_none_or(|base| self.canonical().name != base.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_found() {
        let f = Ftype::parse("iq4_ks").expect("known");
        assert_eq!((f.id, f.base, f.is_mix()), (Some(145), Some(QuantType::IQ4_KS), false));
        assert_eq!(Ftype::parse("7").expect("known").base, Some(QuantType::Q8_0));
        let mix = Ftype::parse("IQ2_S").expect("known");
        assert_eq!((mix.base, mix.is_mix()), (Some(QuantType::IQ2_XS), true));
        let alias = Ftype::parse("q4_k").expect("known");
        assert_eq!((alias.canonical().name, alias.base), ("Q4_K_M", Some(QuantType::Q4_K)));
        assert_eq!(Ftype::parse("copy").map(|f| (f.id, f.base)).ok(), Some((None, None)));
        assert!(Ftype::parse("12345").is_err());
    }

    #[test]
    fn a_type_finds_its_ftype() {
        let of = |ty| Ftype::of_type(ty).map(|f| f.name);
        assert_eq!(of(QuantType::IQ2_S), Some("IQ2_M"));
        assert_eq!(of(QuantType::IQ4_KS), Some("IQ4_KS"));
        assert_eq!(of(QuantType::Q2_0), Some("Q2_0"));
        assert_eq!(of(QuantType::I2_S), None);
    }

    #[test]
    fn every_storable_type_is_the_base_of_some_name() {
        // types that no program's tool writes by name
        let nameless = [QuantType::I2_S, QuantType::Q8_K_R16];
        for t in QuantType::ALL.iter().filter(|t| t.is_storable() && !nameless.contains(t)) {
            assert!(Ftype::all().any(|f| f.base == Some(*t)), "{t}");
        }
    }
}
