//! `QuantType` and THE table: every tensor type's facts, written once.
//!
//! A row of the table is all that a type needs to be listed, sized, read, written, repacked and
//! planned; nothing else in the project switches over types for these facts. What the bits of a
//! block mean stands in the family files (`legacy.rs`, `kquants.rs`, ...), which `layout()` joins
//! to the table.
//!
//! Ids and sizes are those of ggml in ik_llama.cpp and llama.cpp (ids agree where both know a type).

use crate::error::Error;

/// What kind of arithmetic a type belongs to; also the file that holds its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Float,
    Integer,
    Legacy,
    K,
    I,
    Iqk,
    Trellis,
    Ternary,
    Fp4,
    Interleaved,
    Activation,
}

impl Family {
    /// Lower-case name as users see it.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Float => "float",
            Family::Integer => "integer",
            Family::Legacy => "legacy",
            Family::K => "k",
            Family::I => "i",
            Family::Iqk => "iqk",
            Family::Trellis => "trellis",
            Family::Ternary => "ternary",
            Family::Fp4 => "fp4",
            Family::Interleaved => "interleaved",
            Family::Activation => "activation",
        }
    }
}

/// Which reference program can load a tensor of the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KnownTo {
    Both,
    IkLlamaCpp,
    LlamaCpp,
}

impl KnownTo {
    /// The program names, comma separated.
    pub const fn name(self) -> &'static str {
        match self {
            KnownTo::Both => "ik_llama.cpp, llama.cpp",
            KnownTo::IkLlamaCpp => "ik_llama.cpp",
            KnownTo::LlamaCpp => "llama.cpp",
        }
    }
}

/// The command line's policy for a missing importance matrix (every encoder works without one).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImatrixUse {
    /// `quantize` refuses a matrix of this type without data.
    Required,
    /// `quantize` uses data where there is some.
    Recommended,
    /// `quantize` does not look at data.
    Ignored,
}

impl ImatrixUse {
    /// Lower-case name as users see it.
    pub const fn name(self) -> &'static str {
        match self {
            ImatrixUse::Required => "required",
            ImatrixUse::Recommended => "recommended",
            ImatrixUse::Ignored => "ignored",
        }
    }
}

/// Facts of one type; one row of the table.
#[derive(Clone, Copy, Debug)]
pub struct TypeInfo {
    pub ty: QuantType,
    /// Name as ggml spells it in capitals, e.g. `IQ4_KS`.
    pub name: &'static str,
    /// Elements in one block.
    pub block_size: usize,
    /// Bytes of one block, row header not included.
    pub block_bytes: usize,
    /// Bytes in front of each row's blocks (in front of a group: this times `rows`).
    pub row_header_bytes: usize,
    pub family: Family,
    pub known_to: KnownTo,
    pub imatrix: ImatrixUse,
    /// Type used instead when a row is not a multiple of `block_size`; `None`: go on to F16.
    pub fallback: Option<QuantType>,
    /// What the reference quantizes the other operand of a product to (x86, AVX2).
    pub activation: Option<QuantType>,
    /// Rows stored together: 1, or 4, 8, 16 for interleaved types.
    pub rows: usize,
    /// The plain type with the same codes, for interleaved types that have one.
    pub base: Option<QuantType>,
}

macro_rules! quant_types {
    ($($name:ident = $id:literal, [$bs:literal, $bb:literal, $hdr:literal], $family:ident, $known:ident,
       $imatrix:ident, $fallback:expr, $activation:expr, [$rows:literal, $base:expr];)*) => {
        /// A ggml tensor type; the discriminant is the id in GGUF files.
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum QuantType { $($name = $id,)* }

        impl QuantType {
            /// Every type, in order of id.
            pub const ALL: &'static [QuantType] = &[$(QuantType::$name,)*];

            /// The type's row of the table.
            pub const fn info(self) -> &'static TypeInfo {
                #[allow(unused_imports)]
                use QuantType::*;
                match self {
                    $(QuantType::$name => const { &TypeInfo {
                        ty: QuantType::$name,
                        name: stringify!($name),
                        block_size: $bs,
                        block_bytes: $bb,
                        row_header_bytes: $hdr,
                        family: Family::$family,
                        known_to: KnownTo::$known,
                        imatrix: ImatrixUse::$imatrix,
                        fallback: $fallback,
                        activation: $activation,
                        rows: $rows,
                        base: $base,
                    } },)*
                }
            }

            /// The type with this GGUF id, if ikq knows it.
            pub const fn from_id(id: u32) -> Option<QuantType> {
                match id {
                    $($id => Some(QuantType::$name),)*
                    _ => None,
                }
            }
        }
    };
}

//  name      = id, [block elements, block bytes, row header bytes], family, known to, imatrix policy,
//  fallback of a row that no block fits, activation type, [interleaved rows, plain twin]
#[rustfmt::skip]
quant_types! {
    F32        =   0, [  1,   4,  0], Float      , Both      , Ignored    , None        , Some(F32)    , [ 1, None         ];
    F16        =   1, [  1,   2,  0], Float      , Both      , Ignored    , None        , Some(F16)    , [ 1, None         ];
    Q4_0       =   2, [ 32,  18,  0], Legacy     , Both      , Recommended, None        , Some(Q8_2_X4), [ 1, None         ];
    Q4_1       =   3, [ 32,  20,  0], Legacy     , Both      , Recommended, None        , Some(Q8_2_X4), [ 1, None         ];
    Q5_0       =   6, [ 32,  22,  0], Legacy     , Both      , Recommended, None        , Some(Q8_2_X4), [ 1, None         ];
    Q5_1       =   7, [ 32,  24,  0], Legacy     , Both      , Recommended, None        , Some(Q8_2_X4), [ 1, None         ];
    Q8_0       =   8, [ 32,  34,  0], Legacy     , Both      , Ignored    , None        , Some(Q8_2_X4), [ 1, None         ];
    Q8_1       =   9, [ 32,  36,  0], Activation , Both      , Ignored    , None        , Some(Q8_1)   , [ 1, None         ];
    Q2_K       =  10, [256,  84,  0], K          , Both      , Recommended, Some(IQ4_NL), Some(Q8_K)   , [ 1, None         ];
    Q3_K       =  11, [256, 110,  0], K          , Both      , Recommended, Some(IQ4_NL), Some(Q8_K)   , [ 1, None         ];
    Q4_K       =  12, [256, 144,  0], K          , Both      , Recommended, Some(Q5_0)  , Some(Q8_2_X4), [ 1, None         ];
    Q5_K       =  13, [256, 176,  0], K          , Both      , Recommended, Some(Q6_0)  , Some(Q8_2_X4), [ 1, None         ];
    Q6_K       =  14, [256, 210,  0], K          , Both      , Recommended, Some(Q8_0)  , Some(Q8_2_X4), [ 1, None         ];
    Q8_K       =  15, [256, 296,  0], Activation , Both      , Ignored    , None        , None         , [ 1, None         ];
    IQ2_XXS    =  16, [256,  66,  0], I          , Both      , Required   , Some(IQ4_NL), Some(Q8_K)   , [ 1, None         ];
    IQ2_XS     =  17, [256,  74,  0], I          , Both      , Required   , Some(IQ4_NL), Some(Q8_K)   , [ 1, None         ];
    IQ3_XXS    =  18, [256,  98,  0], I          , Both      , Recommended, Some(IQ4_NL), Some(Q8_K)   , [ 1, None         ];
    IQ1_S      =  19, [256,  50,  0], I          , Both      , Required   , Some(IQ4_NL), Some(Q8_K)   , [ 1, None         ];
    IQ4_NL     =  20, [ 32,  18,  0], I          , Both      , Recommended, None        , Some(Q8_2_X4), [ 1, None         ];
    IQ3_S      =  21, [256, 110,  0], I          , Both      , Recommended, Some(IQ4_NL), Some(Q8_K)   , [ 1, None         ];
    IQ2_S      =  22, [256,  82,  0], I          , Both      , Required   , Some(IQ4_NL), Some(Q8_K)   , [ 1, None         ];
    IQ4_XS     =  23, [256, 136,  0], I          , Both      , Recommended, Some(IQ4_NL), Some(Q8_K)   , [ 1, None         ];
    I8         =  24, [  1,   1,  0], Integer    , Both      , Ignored    , None        , None         , [ 1, None         ];
    I16        =  25, [  1,   2,  0], Integer    , Both      , Ignored    , None        , None         , [ 1, None         ];
    I32        =  26, [  1,   4,  0], Integer    , Both      , Ignored    , None        , None         , [ 1, None         ];
    I64        =  27, [  1,   8,  0], Integer    , Both      , Ignored    , None        , None         , [ 1, None         ];
    F64        =  28, [  1,   8,  0], Float      , Both      , Ignored    , None        , None         , [ 1, None         ];
    IQ1_M      =  29, [256,  56,  0], I          , Both      , Required   , Some(IQ4_NL), Some(Q8_K)   , [ 1, None         ];
    BF16       =  30, [  1,   2,  0], Float      , Both      , Ignored    , None        , Some(BF16)   , [ 1, None         ];
    Q4_0_4_4   =  31, [ 32,  18,  0], Interleaved, IkLlamaCpp, Recommended, None        , Some(Q8_0)   , [ 4, Some(Q4_0)   ];
    Q4_0_4_8   =  32, [ 32,  18,  0], Interleaved, IkLlamaCpp, Recommended, None        , Some(Q8_0)   , [ 4, Some(Q4_0)   ];
    Q4_0_8_8   =  33, [ 32,  18,  0], Interleaved, IkLlamaCpp, Recommended, None        , Some(Q8_0)   , [ 8, Some(Q4_0)   ];
    TQ1_0      =  34, [256,  54,  0], Ternary    , LlamaCpp  , Recommended, Some(Q4_0)  , Some(Q8_K)   , [ 1, None         ];
    TQ2_0      =  35, [256,  66,  0], Ternary    , LlamaCpp  , Recommended, Some(Q4_0)  , Some(Q8_K)   , [ 1, None         ];
    I2_S       =  36, [  1,   1,  0], Ternary    , IkLlamaCpp, Ignored    , None        , Some(Q8_0)   , [ 1, None         ];
    MXFP4      =  39, [ 32,  17,  0], Fp4        , Both      , Recommended, None        , Some(Q8_2_X4), [ 1, None         ];
    NVFP4      =  40, [ 64,  36,  0], Fp4        , LlamaCpp  , Recommended, None        , Some(Q8_0)   , [ 1, None         ];
    Q1_0_G128  =  41, [128,  18,  0], Ternary    , Both      , Recommended, None        , Some(Q8_2_X4), [ 1, None         ];
    Q2_0       =  42, [ 64,  18,  0], Ternary    , LlamaCpp  , Recommended, Some(Q4_0)  , Some(Q8_0)   , [ 1, None         ];
    Q8_0_X4    =  97, [ 32,  34,  0], Activation , IkLlamaCpp, Ignored    , None        , None         , [ 1, None         ];
    Q8_1_X4    =  98, [ 32,  36,  0], Activation , IkLlamaCpp, Ignored    , None        , None         , [ 1, None         ];
    Q8_2_X4    =  99, [ 32,  36,  0], Activation , IkLlamaCpp, Ignored    , None        , None         , [ 1, None         ];
    Q6_0       = 133, [ 32,  26,  0], Legacy     , IkLlamaCpp, Recommended, None        , Some(Q8_2_X4), [ 1, None         ];
    IQ1_BN     = 134, [ 64,  13,  2], Ternary    , IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_K64) , [ 1, None         ];
    IQ2_BN     = 135, [ 64,  16,  4], Ternary    , IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_K64) , [ 1, None         ];
    Q8_K64     = 136, [ 64,  68,  0], Activation , IkLlamaCpp, Ignored    , None        , None         , [ 1, None         ];
    IQ2_K      = 137, [256,  76,  0], Iqk        , IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_K)   , [ 1, None         ];
    IQ3_K      = 138, [256, 110,  0], Iqk        , IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_K)   , [ 1, None         ];
    IQ4_K      = 139, [256, 144,  0], Iqk        , IkLlamaCpp, Recommended, Some(Q5_0)  , Some(Q8_K)   , [ 1, None         ];
    IQ5_K      = 140, [256, 176,  0], Iqk        , IkLlamaCpp, Recommended, Some(Q6_0)  , Some(Q8_K)   , [ 1, None         ];
    IQ6_K      = 141, [256, 212,  0], Iqk        , IkLlamaCpp, Recommended, Some(Q8_0)  , Some(Q8_K)   , [ 1, None         ];
    IQ4_KS     = 144, [256, 136,  4], Iqk        , IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_K)   , [ 1, None         ];
    IQ2_KS     = 145, [256,  70,  2], Iqk        , IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_K)   , [ 1, None         ];
    IQ4_KSS    = 146, [256, 128,  4], Iqk        , IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_K)   , [ 1, None         ];
    Q8_K16     = 147, [ 64,  64, 20], Activation , IkLlamaCpp, Ignored    , None        , None         , [ 1, None         ];
    Q8_K32     = 148, [256, 296,  0], Activation , IkLlamaCpp, Ignored    , None        , None         , [ 1, None         ];
    Q8_KR8     = 149, [256, 296,  0], Activation , IkLlamaCpp, Ignored    , None        , None         , [ 1, None         ];
    Q8_K128    = 150, [128, 140,  0], Activation , IkLlamaCpp, Ignored    , None        , None         , [ 1, None         ];
    Q8_KV      = 151, [ 32,  32,  8], Legacy     , IkLlamaCpp, Ignored    , None        , Some(Q8_KV)  , [ 1, None         ];
    IQ5_KS     = 152, [256, 168,  4], Iqk        , IkLlamaCpp, Recommended, Some(Q5_0)  , Some(Q8_K)   , [ 1, None         ];
    IQ2_KT     = 153, [256,  68,  4], Trellis    , IkLlamaCpp, Required   , Some(IQ4_NL), Some(Q8_2_X4), [ 1, None         ];
    IQ3_KT     = 154, [256, 100,  4], Trellis    , IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_2_X4), [ 1, None         ];
    IQ4_KT     = 155, [256, 128,  4], Trellis    , IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_2_X4), [ 1, None         ];
    IQ3_KS     = 156, [256, 102,  2], Iqk        , IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_K)   , [ 1, None         ];
    IQ2_KL     = 157, [256,  86,  2], Iqk        , IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_K)   , [ 1, None         ];
    IQ1_KT     = 158, [256,  56,  4], Trellis    , IkLlamaCpp, Required   , Some(IQ4_NL), Some(Q8_2_X4), [ 1, None         ];
    Q4_0_R8    = 202, [ 32,  18,  0], Interleaved, IkLlamaCpp, Recommended, None        , Some(Q8_2_X4), [ 8, Some(Q4_0)   ];
    Q5_0_R4    = 206, [ 32,  22,  0], Interleaved, IkLlamaCpp, Recommended, None        , Some(Q8_2_X4), [ 4, Some(Q5_0)   ];
    Q8_0_R8    = 208, [ 32,  34,  0], Interleaved, IkLlamaCpp, Ignored    , None        , Some(Q8_2_X4), [ 8, Some(Q8_0)   ];
    Q2_K_R4    = 210, [256,  84,  0], Interleaved, IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_K)   , [ 4, Some(Q2_K)   ];
    Q3_K_R4    = 211, [256, 110,  0], Interleaved, IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_K)   , [ 4, Some(Q3_K)   ];
    Q4_K_R4    = 212, [256, 144,  0], Interleaved, IkLlamaCpp, Recommended, Some(Q5_0)  , Some(Q8_K32) , [ 4, Some(Q4_K)   ];
    Q5_K_R4    = 213, [256, 176,  0], Interleaved, IkLlamaCpp, Recommended, Some(Q6_0)  , Some(Q8_K32) , [ 4, Some(Q5_K)   ];
    Q6_K_R4    = 214, [256, 210,  0], Interleaved, IkLlamaCpp, Recommended, Some(Q8_0)  , Some(Q8_K)   , [ 4, Some(Q6_K)   ];
    IQ2_XXS_R4 = 216, [256,  66,  0], Interleaved, IkLlamaCpp, Required   , Some(IQ4_NL), Some(Q8_K)   , [ 4, Some(IQ2_XXS)];
    IQ2_XS_R4  = 217, [256,  74,  0], Interleaved, IkLlamaCpp, Required   , Some(IQ4_NL), Some(Q8_K)   , [ 4, Some(IQ2_XS) ];
    IQ3_XXS_R4 = 218, [256,  98,  0], Interleaved, IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_K)   , [ 4, Some(IQ3_XXS)];
    IQ1_S_R4   = 219, [ 32,   6,  2], Interleaved, IkLlamaCpp, Required   , None        , Some(Q8_K128), [ 4, None         ];
    IQ4_NL_R4  = 220, [ 32,  18,  0], Interleaved, IkLlamaCpp, Recommended, None        , Some(Q8_2_X4), [ 4, Some(IQ4_NL) ];
    IQ3_S_R4   = 221, [256, 110,  0], Interleaved, IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_K)   , [ 4, Some(IQ3_S)  ];
    IQ2_S_R4   = 222, [256,  82,  0], Interleaved, IkLlamaCpp, Required   , Some(IQ4_NL), Some(Q8_K)   , [ 4, Some(IQ2_S)  ];
    IQ4_XS_R8  = 223, [256, 136,  0], Interleaved, IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_K32) , [ 8, Some(IQ4_XS) ];
    IQ1_M_R4   = 229, [ 32,   7,  2], Interleaved, IkLlamaCpp, Required   , None        , Some(Q8_K128), [ 4, None         ];
    BF16_R16   = 230, [  1,   2,  0], Interleaved, IkLlamaCpp, Ignored    , None        , Some(BF16)   , [16, Some(BF16)   ];
    Q6_0_R4    = 233, [ 32,  26,  0], Interleaved, IkLlamaCpp, Recommended, None        , Some(Q8_2_X4), [ 4, Some(Q6_0)   ];
    IQ2_BN_R4  = 335, [ 64,  16,  4], Interleaved, IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_K16) , [ 4, Some(IQ2_BN) ];
    IQ2_K_R4   = 337, [256,  76,  0], Interleaved, IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_K)   , [ 4, Some(IQ2_K)  ];
    IQ3_K_R4   = 338, [256, 110,  0], Interleaved, IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_K)   , [ 4, Some(IQ3_K)  ];
    IQ4_K_R4   = 339, [256, 144,  0], Interleaved, IkLlamaCpp, Recommended, Some(Q5_0)  , Some(Q8_K)   , [ 4, Some(IQ4_K)  ];
    IQ5_K_R4   = 340, [256, 176,  0], Interleaved, IkLlamaCpp, Recommended, Some(Q6_0)  , Some(Q8_K)   , [ 4, Some(IQ5_K)  ];
    IQ4_KS_R4  = 344, [256, 136,  4], Interleaved, IkLlamaCpp, Recommended, Some(IQ4_NL), Some(Q8_K32) , [ 4, Some(IQ4_KS) ];
    IQ5_KS_R4  = 352, [256, 168,  4], Interleaved, IkLlamaCpp, Recommended, Some(Q5_0)  , Some(Q8_K32) , [ 4, Some(IQ5_KS) ];
    MXFP4_R8   = 353, [ 32,  17,  0], Interleaved, IkLlamaCpp, Recommended, None        , Some(Q8_2_X4), [ 8, Some(MXFP4)  ];
    Q8_K_R16   = 397, [256, 258,  0], Interleaved, IkLlamaCpp, Ignored    , None        , Some(Q8_K)   , [16, None         ];
    Q8_KV_R8   = 398, [ 32,  32,  4], Interleaved, IkLlamaCpp, Ignored    , None        , Some(Q8_KV)  , [ 8, None         ];
    Q8_K_R8    = 399, [256, 258,  0], Interleaved, IkLlamaCpp, Ignored    , Some(Q8_0)  , Some(Q8_K)   , [ 8, None         ];
}

/// Other spellings that people use for a type.
const ALIASES: &[(&str, QuantType)] = &[
    ("Q4_0_4X4", QuantType::Q4_0_4_4),
    ("Q4_0_4X8", QuantType::Q4_0_4_8),
    ("Q4_0_8X8", QuantType::Q4_0_8_8),
    ("Q1_0", QuantType::Q1_0_G128),
];

impl QuantType {
    /// GGUF id.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Name in capitals, e.g. `IQ4_KS`.
    pub const fn name(self) -> &'static str {
        self.info().name
    }

    /// Bits per weight of the blocks, row headers not counted.
    pub fn bpw(self) -> f64 {
        match self {
            QuantType::I2_S => 2.0,
            _ => {
                let t = self.info();
                8.0 * t.block_bytes as f64 / t.block_size as f64
            }
        }
    }

    /// Whether a weight file may hold the type as the result of quantizing: everything but
    /// activation formats and integers (F64 is read, never written).
    pub const fn is_storable(self) -> bool {
        !matches!(self.info().family, Family::Activation | Family::Integer) && !matches!(self, QuantType::F64)
    }

    /// Rows of several types stored together.
    pub const fn is_interleaved(self) -> bool {
        self.info().rows > 1
    }

    /// Finds a type by name: any case, aliases included.
    ///
    /// # Errors
    /// [`Error::UnknownType`] with the closest names.
    pub fn parse(name: &str) -> Result<QuantType, Error> {
        let upper = name.trim().to_ascii_uppercase();
        QuantType::ALL
            .iter()
            .copied()
            .find(|t| t.name() == upper)
            .or_else(|| ALIASES.iter().find(|(a, _)| *a == upper).map(|(_, t)| *t))
            .ok_or_else(|| Error::UnknownType {
                name: name.to_string(),
                suggestions: closest(&upper, QuantType::ALL.iter().map(|t| t.name())),
            })
    }
}

impl std::fmt::Display for QuantType {
    /// The name in lower case, as the reference prints most types.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name().to_ascii_lowercase())
    }
}

/// Up to three of `names` nearest to `wanted` by edit distance, best first.
pub fn closest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut scored: Vec<(usize, &str)> = names.map(|n| (edit_distance(wanted, n), n)).collect();
    scored.sort();
    let limit = (wanted.len() / 2).max(2);
    scored.into_iter().filter(|(d, _)| *d <= limit).take(3).map(|(_, n)| n).collect()
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_are_unique_and_found() {
        for t in QuantType::ALL {
            assert_eq!(QuantType::from_id(t.id()), Some(*t));
            assert_eq!(QuantType::parse(&t.name().to_lowercase()), Ok(*t));
        }
        assert_eq!(QuantType::ALL.len(), 96);
        assert!(QuantType::ALL.windows(2).all(|w| w[0].id() < w[1].id()));
    }

    #[test]
    fn a_misspelt_name_is_answered_with_the_near_ones() {
        let Err(Error::UnknownType { suggestions, .. }) = QuantType::parse("iq4ks") else {
            panic!("must be refused")
        };
        assert!(suggestions.contains(&"IQ4_KS"));
    }

    #[test]
    fn an_interleaved_type_has_the_block_of_its_base() {
        for t in QuantType::ALL.iter().filter(|t| t.is_interleaved()) {
            if let Some(base) = t.info().base {
                let (a, b) = (t.info(), base.info());
                assert_eq!(
                    (a.block_size, a.block_bytes, a.row_header_bytes),
                    (b.block_size, b.block_bytes, b.row_header_bytes),
                    "{t}"
                );
            }
        }
    }
}
