//! Instruction sets as values, and the vector operations that decoders, encoders and matrix products are written
//! in.
//!
//! - A token ([`Avx2`], [`Avx512`]) is only made by detection, so holding it proves
//!   that the machine has the instructions; [`Scalar`] needs none. [`Isa`] has the operations of all tokens.
//! - An algorithm is written once, generic over [`Isa`], as an [`IsaOp`]; [`run`] compiles it for
//!   each instruction set and calls the one that is asked for. The `#[target_feature]` attributes of the
//!   whole project are those of the two wrappers that [`run`] calls; no other function needs one.
//! - Operations give the same bits on every instruction set: integers are exact, floats are single IEEE operations
//!   that are never fused or reordered. The exceptions are the fused products and the sums in any order of
//!   [`Arith`] and [`Products`]. Plain Rust code inside an `IsaOp`, which the compiler vectorizes for the set in
//!   question, gives the same bits too. Encoders rely on that for files that do not depend on the machine.
//!
//! The environment variable `IKQ_ISA=scalar|avx2|avx512` forces a set; one that the machine lacks is an error.

mod arith;
mod arrays;
mod avx2;
mod avx512;
mod isa;
mod lane_bits;
mod lanes;
mod products;
mod row_lanes;
mod scalar;
mod select;
mod transpose;

pub use arith::{Arith, prefetch};
pub use arrays::{array, map};
pub use avx2::Avx2;
pub use avx512::Avx512;
pub use isa::{Isa, IsaOp};
pub use lane_bits::LaneBits;
pub use lanes::{Lanes, pair};
pub use products::Products;
pub use row_lanes::{Codebook4, Codebook8, LaneIndices, RowLanes, TakeLanes};
pub use scalar::Scalar;
pub use select::{IsaKind, available, best, run, selected};
