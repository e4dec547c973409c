//! The tables of the crate against `tables.json` of the format descriptions, where these are present.

use ikq_formats::codebook::*;
use serde_json::Value;

fn numbers(v: &Value, out: &mut Vec<f64>) {
    match v {
        Value::Array(items) => items.iter().for_each(|item| numbers(item, out)),
        _ => out.push(v.as_f64().expect("tables.json holds numbers only")),
    }
}

fn wide<'a>(grid: impl IntoIterator<Item = &'a u64>) -> Vec<f64> {
    grid.into_iter().flat_map(|g| g.to_le_bytes()).map(|b| f64::from(b as i8)).collect()
}

fn narrow(grid: &[u32]) -> Vec<f64> {
    grid.iter().flat_map(|g| g.to_le_bytes()).map(f64::from).collect()
}

fn floats<T: Copy + Into<f64>>(values: &[T]) -> Vec<f64> {
    values.iter().map(|v| (*v).into()).collect()
}

#[test]
#[allow(clippy::print_stderr)]
fn tables_are_those_of_the_descriptions() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/formats/tables.json");
    let Ok(text) = std::fs::read_to_string(path) else {
        eprintln!("skipped: {path} is not there");
        return;
    };
    let tables: Value = serde_json::from_str(&text).expect("tables.json is JSON");
    let trits: Vec<f64> = IQ1BN_TRITS.as_flattened().iter().map(|t| f64::from(*t) - 1.0).collect();
    let ue4m3: Vec<f64> = (0..=255).map(|b| f64::from(ue4m3_half(b))).collect();
    let ours = [
        ("iq1s_grid", wide(&IQ1S_GRID)),
        ("iq2xxs_grid", wide(&IQ2XXS_GRID)),
        ("iq2xs_grid", wide(&IQ2XS_GRID)),
        ("iq2s_grid", wide(&IQ2S_GRID)),
        ("iq3xxs_grid", narrow(&IQ3XXS_GRID)),
        ("iq3s_grid", narrow(&IQ3S_GRID)),
        ("ksigns", floats(&KSIGNS)),
        ("sign_scramble", floats(&SIGN_SCRAMBLE)),
        ("iq4nl_values", floats(&IQ4NL_VALUES)),
        ("iq2nl_values", floats(IQ2NL_VALUES.as_flattened())),
        ("iq3nl_values", floats(IQ3NL_VALUES.as_flattened())),
        ("iq4k_values", floats(IQ4K_VALUES.as_flattened())),
        ("iq5nl_values", floats(IQ5NL_VALUES.as_flattened())),
        ("iq6nl_values", floats(IQ6NL_VALUES.as_flattened())),
        ("iq2kl_values", floats(IQ2KL_VALUES.as_flattened())),
        ("iq2kl_index", floats(&IQ2KL_INDEX)),
        ("iq2kl_neighbours", floats(IQ2KL_NEIGHBOURS.as_flattened())),
        ("fp4_e2m1_x2", floats(&FP4_E2M1_X2)),
        ("pow3_iq1bn", floats(&IQ1BN_POWERS)),
        ("iq1bn_values", trits),
        ("ue4m3_half", ue4m3),
    ];
    for (name, mine) in ours {
        let mut theirs = Vec::new();
        numbers(&tables[name]["data"], &mut theirs);
        assert_eq!(mine, theirs, "{name}");
    }
    let kt = &tables["kt_constants"]["data"];
    for (name, mine) in [
        ("multiplier", KT_MULTIPLIER),
        ("offset", KT_OFFSET),
        ("alt_offset_iq4_kt", KT_OFFSET_IQ4_ALT),
        ("byte_mask", KT_BYTE_MASK),
        ("center", KT_CENTER as u32),
    ] {
        assert_eq!(kt[name].as_u64(), Some(u64::from(mine)), "{name}");
    }
    assert_eq!(tables["deltas"]["data"]["iq1s"].as_f64(), Some(f64::from(IQ1_DELTA)));
}
