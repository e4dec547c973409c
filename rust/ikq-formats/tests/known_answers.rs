//! Layouts, row forms and tables against `known_answers.json` of the format descriptions: one block
//! of every weight type is unpacked, turned into floats by the formulas of the family files' heads
//! (in the order of operations that the descriptions demand) and compared by CRC. This is a slow
//! oracle for the places of the bits; the decoders that ikq uses live in `ikq-decode`.

use QuantType::*;
use half::{bf16, f16};
use ikq_formats::codebook::*;
use ikq_formats::{Layout, QuantType, deinterleave_group, layout, row_form};
use serde_json::Value;

/// The numbers of one row's block.
struct Block<'a> {
    layout: &'a Layout,
    values: Vec<u32>,
}

impl Block<'_> {
    fn number(&self, field: &str, i: usize) -> u32 {
        let (start, f) = self.layout.field(field).unwrap_or_else(|| panic!("no field {field}"));
        assert!(i < f.count, "{field} has {} numbers", f.count);
        self.values[start + i]
    }

    /// The number, sign-extended where its field is signed.
    fn int(&self, field: &str, i: usize) -> i32 {
        let (_, f) = self.layout.field(field).unwrap_or_else(|| panic!("no field {field}"));
        let v = self.number(field, i) as i32;
        if f.signed { v << (32 - f.bits) >> (32 - f.bits) } else { v }
    }

    fn float(&self, field: &str, i: usize) -> f32 {
        self.int(field, i) as f32
    }

    fn half(&self, field: &str) -> f32 {
        f16::from_bits(self.number(field, 0) as u16).to_f32()
    }
}

fn sign(negative: bool) -> f32 {
    if negative { -1.0 } else { 1.0 }
}

/// Element `i` of a block; `d` is the scale of the row header where the type has one.
fn value(ty: QuantType, x: &Block, d: f32, i: usize) -> f32 {
    let q = |minus: i32| (x.int("q", i) - minus) as f32;
    let code = |i: usize| x.number("q", i) as usize;
    let shift = |k: usize| x.number("shift", k) as usize;
    let scale = |k: usize, minus: i32| (x.int("scales", k) - minus) as f32;
    let wide = |grid: &[u64]| f32::from(grid[x.number("grid", i / 8) as usize].to_le_bytes()[i % 8] as i8);
    let narrow = |grid: &[u32]| f32::from(grid[x.number("grid", i / 4) as usize].to_le_bytes()[i % 4]);
    let sign_bit = || sign(x.number("signs", i / 8) >> (i % 8) & 1 == 1);
    let sign_code = || sign(KSIGNS[x.number("signs", i / 8) as usize] >> (i % 8) & 1 == 1);
    let delta = |k: usize| sign(shift(k) == 1) * IQ1_DELTA;
    let affine = |per: usize| {
        let (sc, m) = (x.float("sc", i / per), x.float("m", i / per));
        x.half("d") * sc * q(0) - x.half("dmin") * m
    };
    // scale bytes of the KS types carry their shift bit
    let ks = |table: &[[i8; 16]; 2]| {
        let c = x.int("scales", i / 32);
        d * ((c & 254) - 127) as f32 * f32::from(table[c as usize & 1][code(i)])
    };
    match ty {
        Q4_0 => q(8) * x.half("d"),
        Q4_1 | Q5_1 => q(0) * x.half("d") + x.half("m"),
        Q5_0 => q(16) * x.half("d"),
        Q6_0 => q(32) * x.half("d"),
        Q8_0 | Q8_K_R8 | Q8_K_R16 => q(0) * x.half("d"),
        Q8_KV_R8 => q(0) * d,
        Q2_K => affine(16),
        Q4_K | Q5_K => affine(32),
        Q3_K => x.half("d") * scale(i / 16, 32) * q(4),
        Q6_K => x.half("d") * scale(i / 16, 0) * q(32),
        IQ2_XXS => x.half("d") * (0.5 + scale(i / 32, 0)) * 0.25 * wide(&IQ2XXS_GRID) * sign_code(),
        IQ2_XS => x.half("d") * (0.5 + scale(i / 16, 0)) * 0.25 * wide(&IQ2XS_GRID) * sign_code(),
        IQ2_S => x.half("d") * (0.5 + scale(i / 16, 0)) * 0.25 * wide(&IQ2S_GRID) * sign_bit(),
        IQ3_XXS => x.half("d") * (0.5 + scale(i / 32, 0)) * 0.5 * narrow(&IQ3XXS_GRID) * sign_code(),
        IQ3_S => x.half("d") * (1.0 + 2.0 * scale(i / 32, 0)) * narrow(&IQ3S_GRID) * sign_bit(),
        IQ1_S => x.half("d") * (2.0 * scale(i / 32, 0) + 1.0) * (wide(&IQ1S_GRID) + delta(i / 32)),
        IQ1_M => x.half("d") * (2.0 * scale(i / 16, 0) + 1.0) * (wide(&IQ1S_GRID) + delta(i / 8)),
        IQ1_S_R4 => d * (2.0 * scale(0, 0) + 1.0) * (wide(&IQ1S_GRID) + delta(0)),
        IQ1_M_R4 => d * scale(i / 16, 0) * (wide(&IQ1S_GRID) + delta(i / 8)),
        IQ4_NL => x.half("d") * f32::from(IQ4NL_VALUES[code(i)]),
        IQ4_XS => x.half("d") * scale(i / 32, 32) * f32::from(IQ4NL_VALUES[code(i)]),
        IQ2_K => x.half("d") * scale(i / 16, 8) * f32::from(IQ2NL_VALUES[shift(i / 16)][code(i)]),
        IQ3_K => {
            let s = x.int("scales", i / 16);
            let s = sign(s & 16 != 0) * (2 * (s & 15) + 1) as f32;
            x.half("d") * s * f32::from(IQ3NL_VALUES[shift(i / 16)][code(i)])
        }
        IQ4_K => x.half("d") * scale(i / 16, 32) * f32::from(IQ4K_VALUES[shift(i / 16)][code(i)]),
        IQ5_K => x.half("d") * scale(i / 16, 32) * f32::from(IQ5NL_VALUES[shift(i / 16)][code(i)]),
        IQ6_K => x.half("d") * scale(i / 16, 0) * f32::from(IQ6NL_VALUES[shift(i / 16)][code(i)]),
        IQ4_KS | IQ4_KSS => ks(&IQ4K_VALUES),
        IQ5_KS => {
            let c = x.int("scales", i / 32);
            d * ((c & 254) - 127) as f32 * f32::from(IQ5NL_VALUES[c as usize & 1][code(i)])
        }
        IQ2_KS => d * scale(i / 32, 16) * f32::from(IQ2NL_VALUES[shift(i / 32)][code(i)]),
        IQ3_KS => d * scale(i / 32, 16) * f32::from(IQ3NL_VALUES[shift(i / 32)][code(i)]),
        IQ2_KL => d * scale(i / 32, 32) * f32::from(IQ2KL_VALUES[code(i / 2)][i % 2]),
        IQ1_KT | IQ2_KT => {
            let t: [i32; 8] = kt_values(x.number("q", i / 8), KT_OFFSET);
            d * f32::from(IQ4NL_VALUES[x.number("scales", i / 32) as usize]) * t[i % 8] as f32
        }
        IQ3_KT => {
            let t: [i32; 8] = kt_values(x.number("q", i / 8), KT_OFFSET);
            d * scale(i / 32, 0) * t[i % 8].abs() as f32 * sign(x.number("signs", i) == 1)
        }
        IQ4_KT => {
            let offset = [KT_OFFSET, KT_OFFSET_IQ4_ALT][shift(i / 32)];
            let t: [i32; 4] = kt_values(x.number("q", i / 4), offset);
            d * scale(i / 32, 64) * t[i % 4] as f32
        }
        IQ1_BN | IQ2_BN => d * q(1),
        TQ1_0 | TQ2_0 | Q2_0 => q(1) * x.half("d"),
        Q1_0_G128 => sign(code(i) == 0) * x.half("d"),
        MXFP4 => (x.float("e", 0) - 128.0).exp2() * f32::from(FP4_E2M1_X2[code(i)]),
        NVFP4 => ue4m3_half(x.number("d", i / 16) as u8) * f32::from(FP4_E2M1_X2[code(i)]),
        BF16 => bf16::from_bits(x.number("x", 0) as u16).to_f32(),
        _ => panic!("no formula for {ty:?}"),
    }
}

/// The values of a block with its row header, or of a group, row by row.
fn decode(ty: QuantType, bytes: &[u8]) -> Vec<f32> {
    let t = ty.info();
    let header = t.row_header_bytes;
    let mut rows = bytes.to_vec();
    let (row_layout, formula) = match row_form(ty) {
        Some(form) => {
            let n = layout(ty).expect("a layout").block_size;
            deinterleave_group(ty, bytes, n, &mut rows).expect("one column of a group");
            (form.layout(), t.base.unwrap_or(ty))
        }
        None => (layout(ty).expect("a layout"), ty),
    };
    let mut out = Vec::new();
    for row in rows.chunks_exact(rows.len() / t.rows) {
        let (head, block) = row.split_at(header);
        let d = match head {
            [a, b] => f16::from_le_bytes([*a, *b]).to_f32(),
            [a, b, c, d] => f32::from_le_bytes([*a, *b, *c, *d]),
            _ => 1.0,
        };
        for block in block.chunks_exact(row_layout.bytes) {
            let mut x = Block { layout: row_layout, values: vec![0; row_layout.n_values()] };
            row_layout.unpack(block, &mut x.values);
            out.extend((0..row_layout.block_size).map(|i| value(formula, &x, d, i)));
        }
    }
    out
}

fn crc32(bytes: impl IntoIterator<Item = u8>) -> u32 {
    !bytes.into_iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| c >> 1 ^ (0xedb8_8320 & (c & 1).wrapping_neg()))
    })
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).expect("a hex digit") as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[test]
#[allow(clippy::print_stderr)]
fn every_known_answer_comes_out() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/formats/known_answers.json");
    let Ok(text) = std::fs::read_to_string(path) else {
        eprintln!("skipped: {path} is not there");
        return;
    };
    let answers: Value = serde_json::from_str(&text).expect("known_answers.json is JSON");
    let types = answers["types"].as_object().expect("an object of types");
    assert_eq!(types.len(), 72);
    for (name, answer) in types {
        let ty = QuantType::parse(name).expect("a known type");
        let number = |key: &str| answer[key].as_u64().expect("a number") as usize;
        let mut bytes = answer["header_hex"].as_str().map_or(Vec::new(), hex);
        bytes.extend((0..number("bytes")).map(|j| (37 * j + number("c") + j * j / 7) as u8));
        let values = decode(ty, &bytes);
        assert_eq!(values.len(), number("n_values"), "{name}");
        // adding zero turns -0 into +0
        let crc = crc32(values.iter().flat_map(|v| (v + 0.0).to_le_bytes()));
        let expected = answer["crc32"].as_str().expect("a CRC in hex");
        assert_eq!(format!("{crc:08x}"), expected, "{name}: {:?} ...", &values[..4]);
    }
}
