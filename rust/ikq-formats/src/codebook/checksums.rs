//! CRC-32 (zlib) of every table as bytes in row-major order, for the tests.
//!
//! Generated from the project's `tables.json` by `tools/make_codebooks.py`, which also writes the
//! checksums in `checksums.rs`; do not edit. The numbers are those of ggml (llama.cpp and
//! ik_llama.cpp), without which no file of these types can be read.

#[rustfmt::skip]
pub const CHECKSUMS: &[(&str, u32)] = &[
    ("IQ1S_GRID", 0xb85e6ccf),
    ("IQ2XXS_GRID", 0x9924ff02),
    ("IQ2XS_GRID", 0xfa1e1bfd),
    ("IQ2S_GRID", 0x25ae5bf1),
    ("IQ3XXS_GRID", 0x07ba9ed0),
    ("IQ3S_GRID", 0xf576e4f3),
    ("IQ4NL_VALUES", 0xbbe1a3fc),
    ("IQ2NL_VALUES", 0x035f991e),
    ("IQ3NL_VALUES", 0xe2ba317e),
    ("IQ4K_VALUES", 0x367d0727),
    ("IQ5NL_VALUES", 0x9997ada9),
    ("IQ6NL_VALUES", 0x716afcf4),
    ("IQ2KL_VALUES", 0x84edeeb3),
    ("FP4_E2M1_X2", 0x08e8de1e),
    ("IQ2KL_INDEX", 0xea0abb79),
    ("IQ2KL_NEIGHBOURS", 0x14e01a49),
    ("KSIGNS", 0xffab7940),
    ("SIGN_SCRAMBLE", 0xd6567bd6),
    ("IQ1BN_TRITS", 0xeac4c2ff),
];
