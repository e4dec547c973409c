//! The macro with which methods of a token run intrinsics.

/// Runs intrinsics in methods of a token.
macro_rules! isa {
    ($($body:tt)*) => {
        // SAFETY: in methods of a token, which proves the instructions; memory operands are references to
        // arrays of the width that is read.
        unsafe { $($body)* }
    };
}
