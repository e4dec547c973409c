//! Names of GPU architectures, as users and the compiler write them.

use crate::error::Error;
use crate::loader::OLDEST_SM;
use crate::nvrtc::Nvrtc;

/// The architectures that compilers of CUDA 12 and 13 know, from the oldest on that kernels are written for; for a compiler
/// that does not tell which it knows.
const KNOWN: [u32; 12] = [OLDEST_SM, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121];

/// The compiler's name for a compute capability.
pub fn arch(sm: u32) -> String {
    format!("sm_{sm}")
}

/// The compiler's name of an architecture that users write as `sm_90`, `90` or `9.0`.
///
/// # Errors
/// [`Error::Architecture`] for texts that are no architecture, and for those that kernels or the compiler do not know.
pub fn parse_arch(nvrtc: &Nvrtc, text: &str) -> Result<String, Error> {
    let told = nvrtc.architectures();
    let known = if told.is_empty() { KNOWN.to_vec() } else { told };
    named(text, known.into_iter().filter(|sm| *sm >= OLDEST_SM).collect())
}

fn named(text: &str, known: Vec<u32>) -> Result<String, Error> {
    let name = text.trim().to_ascii_lowercase();
    let digits = name.strip_prefix("sm_").unwrap_or(&name);
    let digits = match digits.split_once('.') {
        Some((major, minor)) if digits == name && minor.len() == 1 => format!("{major}{minor}"),
        _ => digits.to_string(),
    };
    // `str::parse` would take a sign, too
    let sm = if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None };
    match sm.filter(|sm| known.contains(sm)) {
        Some(sm) => Ok(arch(sm)),
        None => Err(Error::Architecture { text: text.into(), known: known.into_iter().map(arch).collect() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_have_several_spellings() {
        for text in ["sm_90", "90", "9.0", "SM_90", " 90 "] {
            assert_eq!(named(text, KNOWN.to_vec()).expect("an architecture"), "sm_90");
        }
        assert_eq!(named("10.3", KNOWN.to_vec()).expect("an architecture"), "sm_103");
    }

    #[test]
    fn what_is_none_is_told_with_those_that_are() {
        for text in ["h200", "sm_12", "sm_90a", "", "sm_", "+90", "sm_70", "9.0.0", "sm_9.0", "compute_90"] {
            let told = named(text, KNOWN.to_vec()).expect_err("none").to_string();
            assert!(told.contains(&format!("`{text}`")) && told.contains("sm_75, sm_80"), "{told}");
        }
    }
}
