//! Instruction sets as values, and the vector vocabulary of decoders and encoders.
//!
//! - A token ([`Scalar`], [`Avx2`], [`Avx512`]) can only be had from detection; holding it proves
//!   that the machine has the instructions. [`Isa`] is the vocabulary every token speaks.
//! - An algorithm is written once, generic over [`Isa`], as an [`IsaOp`]; [`run`] compiles it for
//!   each instruction set and calls the one asked for. The `#[target_feature]` attributes of the
//!   whole project stand in [`run`]; no other function needs one.
//! - Every operation gives the same bits on every instruction set: integers are exact, floats are
//!   single IEEE operations that are never contracted or reordered. So is plain Rust code inside an
//!   `IsaOp`, which the compiler vectorizes for the set in question: encoders rely on that for
//!   files that do not depend on the machine.
//!
//! `IKQ_ISA=scalar|avx2|avx512` forces one; asking for one that the machine lacks is an error.

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
pub use row_lanes::{Codebook4, Codebook8, RowLanes};
pub use scalar::Scalar;
pub use select::{IsaKind, available, best, run, selected};
