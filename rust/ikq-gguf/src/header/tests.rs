//! One test per fault of a single file, and tests of what must not be a fault.

use super::*;
use crate::testing::Raw;
use crate::{Array, MAX_ARRAY_DEPTH};

// ids of tensor types
const F32: u32 = 0;
const Q4_K: u32 = 12;
const IQ4_KS_R4: u32 = 344;
const UNKNOWN: u32 = 9999;

fn parse(raw: &Raw) -> Result<Header, Fault> {
    Header::parse(&Bytes::from(raw.bytes()))
}

fn fault(raw: &Raw) -> Fault {
    parse(raw).expect_err("must be refused")
}

/// Two F32 tensors of 4 and 8 elements behind two keys.
fn good() -> Raw {
    Raw::new()
        .kv(Kv::new("general.architecture", "llama"))
        .kv(Kv::new("tokens", Array::of_strings(["a", "b"])))
        .tensor(b"x", &[4], F32, 0)
        .tensor(b"y", &[4, 2], F32, 32)
        .data(64)
}

#[test]
fn a_good_file_is_read() {
    for version in [2, 3] {
        let header = parse(&Raw { version, ..good() }).expect("good");
        assert_eq!((header.version, header.alignment), (version, 32));
        assert_eq!(header.metadata.get("general.architecture").and_then(Value::as_str), Some("llama"));
        let [x, y] = &header.tensors[..] else { panic!("two tensors") };
        assert_eq!((&*x.name, x.dims(), x.ne, x.data.len()), ("x", &[4][..], [4, 1, 1, 1], 16));
        assert_eq!((&*y.name, y.n_rows(), y.n_per_row(), y.data.len()), ("y", 2, 4, 32));
        assert_eq!(y.data[..3], [32, 33, 34]);
    }
}

#[test]
fn every_prefix_of_a_file_is_refused_without_panic() {
    let bytes = good().bytes();
    for len in 0..bytes.len() {
        let fault = Header::parse(&Bytes::from(bytes[..len].to_vec())).expect_err("cut short");
        let expected =
            matches!(fault, Fault::Truncated { .. } | Fault::Count { .. } | Fault::TensorOutOfFile { .. });
        assert!(expected, "{len}: {fault}");
    }
}

#[test]
fn running_out_of_bytes_names_place_and_owner() {
    let mut cut = Raw::new().kv(Kv::new("some.key", "a long enough value"));
    cut.body.truncate(cut.body.len() - 3);
    let Fault::Truncated { offset, of, needed, file_len, .. } = fault(&cut) else { panic!("truncated") };
    // 24 bytes of head, 16 of key, 4 of type, 8 of length
    assert_eq!((offset, needed, file_len, of.as_deref()), (52, 19, 68, Some("some.key")));
}

#[test]
fn magic_version_and_byte_order() {
    let mut bytes = good().bytes();
    bytes[0] = b'X';
    assert!(matches!(Header::parse(&bytes.into()), Err(Fault::Magic { found: [b'X', b'G', b'U', b'F'] })));
    assert_eq!(fault(&Raw { version: 1, ..good() }), Fault::Version { version: 1 });
    assert_eq!(fault(&Raw { version: 4, ..good() }), Fault::Version { version: 4 });
    assert_eq!(fault(&Raw { version: 3u32.swap_bytes(), ..good() }), Fault::BigEndian { version: 3 });
}

#[test]
fn counts_that_the_file_cannot_hold() {
    for n in [100, u64::MAX, 1 << 32] {
        assert!(matches!(fault(&Raw { n_kv: n, ..good() }), Fault::Count { offset: 16, .. }));
        assert!(matches!(fault(&Raw { n_tensors: n, ..good() }), Fault::Count { offset: 8, .. }));
    }
    // an array of u64::MAX floats in a small file
    let mut lie = Kv::new("k", Array::from(&[1f32][..])).raw().to_vec();
    let at = lie.len() - 12;
    lie[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
    let Fault::Count { of, max, .. } = fault(&Raw::new().raw_kv(&lie)) else { panic!("count") };
    assert_eq!((of.as_deref(), max), (Some("k"), 1));
}

#[test]
fn names_are_utf8_and_not_endless() {
    let mut key = Kv::new("kk", 1u8).raw().to_vec();
    key[8] = 0xff;
    assert!(matches!(fault(&Raw::new().raw_kv(&key)), Fault::NameUtf8 { offset: 24, what: "a key", .. }));
    let bad_name = Raw::new().tensor(b"\xff", &[1], F32, 0).data(4);
    assert!(matches!(fault(&bad_name), Fault::NameUtf8 { what: "a tensor name", .. }));
    let long = "k".repeat(70_000);
    assert!(matches!(fault(&Raw::new().kv(Kv::new(long, 1u8))), Fault::NameLength { len: 70_000, .. }));
}

#[test]
fn values_need_not_be_utf8() {
    let value = Value::String(Bytes::from(b"\xff\xfe".to_vec()));
    let header = parse(&Raw::new().kv(Kv::new("k", value))).expect("not fatal");
    assert_eq!(header.metadata.get("k").and_then(Value::as_bytes), Some(&b"\xff\xfe"[..]));
}

#[test]
fn unknown_value_types_name_their_key() {
    let mut kv = Kv::new("k", 1u8).raw().to_vec();
    kv[9] = 13;
    assert_eq!(fault(&Raw::new().raw_kv(&kv)), Fault::ValueType { offset: 33, key: "k".to_string(), id: 13 });
    let mut array = Kv::new("k", Array::from(&[1u8][..])).raw().to_vec();
    array[13] = 77;
    assert!(matches!(fault(&Raw::new().raw_kv(&array)), Fault::ValueType { offset: 37, id: 77, .. }));
}

#[test]
fn arrays_are_not_nested_without_end() {
    let mut value = Value::Array(Array::from(&[0u8; 0] as &[u8]));
    for _ in 0..MAX_ARRAY_DEPTH {
        value = Array::new(ValueType::Array, [value]).expect("arrays").into();
    }
    let Fault::ArrayDepth { key, .. } = fault(&Raw::new().kv(Kv::new("deep", value))) else {
        panic!("too deep")
    };
    assert_eq!(key, "deep");
}

#[test]
fn duplicates_are_refused() {
    let keys = Raw::new().kv(Kv::new("a", 1u8)).kv(Kv::new("b", 1u8)).kv(Kv::new("a", 2u8));
    assert_eq!(fault(&keys), Fault::DuplicateKey { offset: 24 + 28, key: "a".to_string() });
    let tensors = Raw::new().tensor(b"t", &[1], F32, 0).tensor(b"t", &[1], F32, 32).data(64);
    assert_eq!(fault(&tensors), Fault::DuplicateTensor { offset: 24 + 33, tensor: "t".to_string() });
}

#[test]
fn alignment_is_a_power_of_two_from_eight_up() {
    let with = |v: Value| Raw { alignment: 64, ..Raw::new() }.kv(Kv::new(ALIGNMENT_KEY, v));
    for bad in
        [Value::U32(0), Value::U32(4), Value::U32(24), Value::I32(-32), Value::from("32"), Value::F32(32.0)]
    {
        assert!(matches!(fault(&with(bad.clone())), Fault::Alignment { offset: 24, .. }), "{bad:?}");
    }
    let good = with(Value::U32(64)).tensor(b"t", &[1], F32, 64).data(68);
    let header = parse(&good).expect("64 is fine");
    assert_eq!((header.alignment, header.tensors[0].file_offset % 64), (64, 0));
}

#[test]
fn tensor_shapes() {
    let with = |dims: &[u64], id| fault(&Raw::new().tensor(b"t", dims, id, 0).data(64));
    assert!(matches!(with(&[1; 5], F32), Fault::DimCount { n_dims: 5, .. }));
    assert!(matches!(with(&[1 << 40, 1 << 40], F32), Fault::ElementCount { .. }));
    assert!(matches!(with(&[1 << 40, 1 << 40, 0], UNKNOWN), Fault::ElementCount { .. }));
    assert!(matches!(with(&[100], Q4_K), Fault::TensorShape { .. }));
    assert!(matches!(with(&[256, 2, 2], IQ4_KS_R4), Fault::TensorShape { .. }));
    assert!(matches!(with(&[1 << 62], F32), Fault::TensorShape { .. }));
}

#[test]
fn tensor_places() {
    let with = |offset, len: u64| fault(&Raw::new().tensor(b"t", &[len], F32, offset).data(64));
    assert!(matches!(with(8, 4), Fault::TensorMisaligned { data_offset: 8, alignment: 32, .. }));
    let Fault::TensorOutOfFile { begin, size, file_len, .. } = with(32, 9) else { panic!("too long") };
    assert_eq!((begin, size, file_len), (64 + 32, 36, 128));
    assert!(matches!(with(1 << 40, 1), Fault::TensorOutOfFile { .. }));
    assert!(matches!(with(u64::MAX - 31, 1), Fault::TensorOutOfFile { .. }));
    let overlap = Raw::new().tensor(b"b", &[4], F32, 32).tensor(b"a", &[9], F32, 0).data(64);
    let Fault::TensorOverlap { tensor, other, .. } = fault(&overlap) else { panic!("overlap") };
    assert_eq!((&*tensor, &*other), ("a", "b"));
}

#[test]
fn unknown_types_take_the_room_up_to_the_next_tensor() {
    let raw = Raw::new()
        .tensor(b"last", &[7], UNKNOWN, 96)
        .tensor(b"u", &[3, 3], UNKNOWN, 0)
        .tensor(b"x", &[4], F32, 64)
        .data(100);
    let header = parse(&raw).expect("not fatal");
    let sizes: Vec<usize> = header.tensors.iter().map(|t| t.data.len()).collect();
    assert_eq!(sizes, [4, 64, 16]);
    assert_eq!(header.tensors[1].ty, TensorType::Unknown(UNKNOWN));
    let refused = header.tensors[1].quant_type().expect_err("cannot be decoded").to_string();
    assert!(refused.contains("`u`") && refused.contains("9999"), "{refused}");

    let no_room = Raw::new().tensor(b"u", &[3], UNKNOWN, 64).data(64);
    assert!(matches!(fault(&no_room), Fault::TensorOutOfFile { .. }));
    let shared = Raw::new().tensor(b"u", &[3], UNKNOWN, 0).tensor(b"x", &[4], F32, 0).data(64);
    assert!(matches!(fault(&shared), Fault::TensorOverlap { .. }));
}

#[test]
fn empty_tensors_and_files_without_tensors() {
    let header = parse(&Raw::new().tensor(b"none", &[0, 5], F32, 0)).expect("nothing to hold");
    assert_eq!((header.tensors[0].data.len(), header.tensors[0].n_elements()), (0, 0));
    assert!(parse(&Raw::new()).expect("no tensors").tensors.is_empty());
    let scalar = parse(&Raw::new().tensor(b"s", &[], F32, 0).data(4)).expect("one element");
    assert_eq!((scalar.tensors[0].n_elements(), scalar.tensors[0].data.len()), (1, 4));
}
