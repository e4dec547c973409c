//! [`Kernel`]: the name of a kernel, in a form that launches can compare without making texts.

use ikq_formats::QuantType;

use super::device_type;
use crate::error::Error;
use crate::sources::Specialisation;

/// A kernel, with the types that its file is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    file: &'static str,
    /// The first part of the name; names of types follow, then the last part.
    stem: &'static str,
    types: [Option<Compiled>; 2],
    end: &'static str,
}

/// A type that a file is compiled for, and the macro that tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Compiled {
    define: &'static str,
    ty: QuantType,
}

impl Kernel {
    /// A kernel of a file that does not depend on a type.
    pub const fn whole(file: &'static str, name: &'static str) -> Kernel {
        Kernel { file, stem: name, types: [None; 2], end: "" }
    }

    /// A kernel of a file that is compiled for a type.
    ///
    /// # Errors
    /// [`Error::Plan`] for types that kernels have no decoder for.
    pub fn of_type(file: &'static str, stem: &'static str, ty: QuantType) -> Result<Kernel, Error> {
        check_type(ty)?;
        let types = [Some(Compiled { define: "IKQ_TYPE", ty }), None];
        Ok(Kernel { file, stem, types, end: "" })
    }

    /// The kernel for a second type, which the macro `define` tells.
    ///
    /// # Errors
    /// As [`Kernel::of_type`].
    pub fn and(self, define: &'static str, ty: QuantType) -> Result<Kernel, Error> {
        check_type(ty)?;
        Ok(Kernel { types: [self.types[0], Some(Compiled { define, ty })], ..self })
    }

    /// The kernel whose name ends so.
    pub fn ending(self, end: &'static str) -> Kernel {
        Kernel { end, ..self }
    }

    /// The kernel's name, such as `mmv_q4_k_c8`.
    pub fn name(&self) -> String {
        let types: String = self.types.iter().flatten().map(|t| format!("_{}", lower(t.ty))).collect();
        format!("{}{types}{}", self.stem, self.end)
    }

    /// The file with its definitions.
    pub fn of(&self) -> Specialisation {
        let defines = self.types.iter().flatten().map(|t| (t.define.to_string(), lower(t.ty)));
        Specialisation { file: self.file.into(), defines: defines.collect() }
    }
}

/// The name of a type in kernels.
fn lower(ty: QuantType) -> String {
    ty.name().to_ascii_lowercase()
}

fn check_type(ty: QuantType) -> Result<(), Error> {
    match device_type(ty)? == ty {
        true => Ok(()),
        false => {
            let why =
                "kernels are for plain types; its rows are taken apart when they are loaded".to_string();
            Err(Error::Plan { name: ty.name().into(), why })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_of_their_parts() {
        let one = Kernel::of_type("mmv.cu", "mmv", QuantType::Q4_K).expect("a type").ending("_c4");
        assert_eq!(one.name(), "mmv_q4_k_c4");
        assert_eq!(one.of().to_string(), "mmv.cu [IKQ_TYPE=q4_k]");
        let two = Kernel::of_type("upgate.cu", "upgate", QuantType::Q8_0).expect("a type");
        let two = two.and("IKQ_GATE", QuantType::F16).expect("a type").ending("_c1");
        assert_eq!(two.name(), "upgate_q8_0_f16_c1");
        assert_eq!(two.of().to_string(), "upgate.cu [IKQ_TYPE=q8_0 IKQ_GATE=f16]");
        assert_eq!(Kernel::whole("router.cu", "router").of().to_string(), "router.cu []");
        assert!(Kernel::of_type("mmv.cu", "mmv", QuantType::Q4_K_R4).is_err());
        assert_ne!(one, one.ending("_c8"));
    }
}
