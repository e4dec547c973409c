//! Choosing an instruction set: detection, the environment variable `IKQ_ISA`, and the wrappers that compile code
//! for each set.

use std::sync::OnceLock;

use crate::isa::IsaOp;
use crate::{Avx2, Avx512, Scalar};

/// The instruction sets that ikq has code for, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IsaKind {
    Scalar,
    Avx2,
    Avx512,
}

impl IsaKind {
    pub const ALL: [IsaKind; 3] = [IsaKind::Scalar, IsaKind::Avx2, IsaKind::Avx512];

    /// The name that `IKQ_ISA` has for it.
    pub const fn name(self) -> &'static str {
        match self {
            IsaKind::Scalar => "scalar",
            IsaKind::Avx2 => "avx2",
            IsaKind::Avx512 => "avx512",
        }
    }

    /// The kind with that name, in upper or lower case.
    pub fn parse(name: &str) -> Option<IsaKind> {
        IsaKind::ALL.into_iter().find(|k| k.name().eq_ignore_ascii_case(name.trim()))
    }

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        match self {
            IsaKind::Scalar => true,
            IsaKind::Avx2 => Avx2::detect().is_some(),
            IsaKind::Avx512 => Avx512::detect().is_some(),
        }
    }
}

/// Every instruction set this machine can run, weakest first; tests loop over it.
pub fn available() -> Vec<IsaKind> {
    IsaKind::ALL.into_iter().filter(|k| k.is_available()).collect()
}

/// The strongest instruction set this machine can run.
pub fn best() -> IsaKind {
    static BEST: OnceLock<IsaKind> = OnceLock::new();
    *BEST.get_or_init(|| available().pop().unwrap_or(IsaKind::Scalar))
}

/// The instruction set to use: `IKQ_ISA` if set, else the strongest. Read once per process.
///
/// # Errors
/// A message when `IKQ_ISA` is not the name of a set, or names one that this machine lacks.
pub fn selected() -> Result<IsaKind, String> {
    static SELECTED: OnceLock<Result<IsaKind, String>> = OnceLock::new();
    SELECTED.get_or_init(|| choose(std::env::var("IKQ_ISA").ok().as_deref())).clone()
}

fn choose(wanted: Option<&str>) -> Result<IsaKind, String> {
    let names = |kinds: &[IsaKind]| kinds.iter().map(|k| k.name()).collect::<Vec<_>>().join(", ");
    match wanted.map(str::trim) {
        None | Some("") => Ok(best()),
        Some(name) => match IsaKind::parse(name) {
            None => Err(format!("IKQ_ISA={name} is none of {}", names(&IsaKind::ALL))),
            Some(k) if k.is_available() => Ok(k),
            Some(k) => Err(format!(
                "IKQ_ISA={} asks for instructions this CPU lacks; it has {}",
                k.name(),
                names(&available())
            )),
        },
    }
}

/// Runs `op`, compiled for `kind`. For a kind that the machine lacks (which [`selected`] and
/// [`available`] never give) the scalar code runs.
#[inline]
pub fn run<O: IsaOp>(kind: IsaKind, op: O) -> O::Output {
    match kind {
        IsaKind::Scalar => op.run(Scalar),
        IsaKind::Avx2 => match Avx2::detect() {
            // SAFETY: the token exists, so the machine has the features of the wrapper.
            Some(isa) => unsafe { with_avx2(isa, op) },
            None => op.run(Scalar),
        },
        IsaKind::Avx512 => match Avx512::detect() {
            // SAFETY: the token exists, so the machine has the features of the wrapper.
            Some(isa) => unsafe { with_avx512(isa, op) },
            None => op.run(Scalar),
        },
    }
}

/// Makes the frame of the function that it is inlined into start at a cache line. Where a function needs more registers than
/// there are, the compiler keeps vectors in its frame, which it takes to be aligned to 16 bytes only unless it knows before that
/// something in it needs more. Every second vector of AVX2, and each of AVX-512, would then lie across two cache lines.
#[inline(always)]
fn align_frame() {
    #[repr(align(64))]
    struct Line;
    let line = Line;
    // SAFETY: there is no instruction.
    unsafe {
        std::arch::asm!("/* {0} */", in(reg) &raw const line, options(readonly, nostack, preserves_flags))
    };
}

// The feature lists are those of the tokens' `detect`.

#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
pub(crate) fn with_avx2<O: IsaOp>(isa: Avx2, op: O) -> O::Output {
    align_frame();
    op.run(isa)
}

#[target_feature(
    enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi"
)]
pub(crate) fn with_avx512<O: IsaOp>(isa: Avx512, op: O) -> O::Output {
    align_frame();
    op.run(isa)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_or_missing_set_is_an_error() {
        assert_eq!(choose(None), Ok(best()));
        assert_eq!(choose(Some(" SCALAR ")), Ok(IsaKind::Scalar));
        assert!(choose(Some("sse9")).is_err_and(|e| e.contains("sse9") && e.contains("avx2")));
    }
}
