//! Every decoder on every instruction set against `known_answers.json` of the format descriptions:
//! one block (interleaved types: one group of one block per row) of fixed bytes per weight type and
//! the CRC of its values. The first CRCs to differ are listed together.

use ikq_decode::dequantize;
use ikq_formats::QuantType;
use ikq_simd::available;
use serde_json::Value;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/formats/known_answers.json");

/// The header, if the type has one, then the bytes of the file's pattern.
fn input(answer: &Value) -> Vec<u8> {
    let number = |key: &str| answer[key].as_u64().expect("a number") as usize;
    let header = answer["header_hex"].as_str().unwrap_or_default();
    let header =
        (0..header.len()).step_by(2).map(|i| u8::from_str_radix(&header[i..i + 2], 16).expect("hex"));
    let block = (0..number("bytes")).map(|j| (37 * j + number("c") + j * j / 7) as u8);
    header.chain(block).collect()
}

#[test]
#[allow(clippy::print_stderr)]
fn every_type_gives_the_known_values_on_every_instruction_set() {
    let Ok(text) = std::fs::read_to_string(PATH) else {
        eprintln!("skipped: {PATH} is not there");
        return;
    };
    let answers: Value = serde_json::from_str(&text).expect("known_answers.json is JSON");
    let types = answers["types"].as_object().expect("an object of types");
    assert_eq!(types.len(), 72);
    let mut wrong = Vec::new();
    for kind in available() {
        for (name, answer) in types {
            let ty = QuantType::parse(name).expect("a known type");
            let n_rows = ty.info().rows;
            let n_values = answer["n_values"].as_u64().expect("a number") as usize;
            let mut out = vec![f32::NAN; n_values];
            dequantize(kind, ty, &input(answer), n_rows, n_values / n_rows, &mut out).expect("a block");
            // adding zero turns -0 into +0
            let values: Vec<u8> = out.iter().flat_map(|v| (v + 0.0).to_le_bytes()).collect();
            let crc = format!("{:08x}", crc32fast::hash(&values));
            if answer["crc32"] != crc.as_str() {
                let first = &answer["first"];
                wrong.push(format!("{name} on {}: {:?}, expected {first}", kind.name(), &out[..4]));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
