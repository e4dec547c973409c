//! Tests of the sizes and places of plans, and of what is refused.

use ikq_formats::QuantType;

use super::*;
use crate::metadata::Kv;

/// `n` F32 tensors of 10 elements: 40 bytes of data, 64 with padding, and 40 bytes of entry each.
fn tensors(n: usize) -> Vec<TensorSpec> {
    (0..n).map(|i| TensorSpec::new(format!("{i:08}"), &[10], QuantType::F32).expect("fits")).collect()
}

fn layout(metadata: &Metadata, n: usize, options: &Options) -> Layout {
    Layout::new(metadata, tensors(n), options).expect("a plan")
}

fn by(split: SplitBy) -> Options {
    Options { split: Some(split), ..Options::default() }
}

fn counts(layout: &Layout) -> Vec<usize> {
    layout.shards().iter().map(|s| s.tensors.len()).collect()
}

#[test]
fn sizes_by_hand() {
    // 24 bytes of head, a pair of 8 + 1 + 4 + 4, two entries of 8 + 8 + 4 + 8 + 4 + 8 = 40: 121 -> 128
    let layout = layout(&Metadata::from(vec![Kv::new("k", 1u32)]), 2, &Options::default());
    assert_eq!(layout.shards()[0].header.len(), 121);
    let places: Vec<(usize, u64, u64)> =
        layout.places().iter().map(|p| (p.shard, p.offset, p.size)).collect();
    assert_eq!(places, [(0, 128, 40), (0, 192, 40)]);
    assert_eq!(layout.total_size(), 256);
    assert!(!layout.is_split());
}

#[test]
fn alignment_comes_from_the_options_or_the_metadata() {
    let of = |metadata: &Metadata, alignment| {
        let layout = layout(metadata, 1, &Options { alignment, ..Options::default() });
        (layout.places()[0].offset, layout.shards()[0].header.clone())
    };
    let plain = Metadata::new();
    let mut marked = Metadata::new();
    marked.set("a", 1u8);
    marked.set(ALIGNMENT_KEY, 256u32);
    assert_eq!(of(&plain, None).0, 64);
    assert_eq!(of(&marked, None).0, 256);
    // the key is added or replaced so that readers see what was used
    for metadata in [&plain, &marked] {
        let (offset, header) = of(metadata, Some(512));
        assert_eq!(offset, 512);
        let pair = encode_kv(ALIGNMENT_KEY, &Value::U32(512));
        assert!(header.windows(pair.len()).any(|w| w == pair));
    }
    assert_eq!(of(&marked, Some(256)), of(&marked, None));

    for bad in [0, 4, 24, 1 << 33] {
        let options = Options { alignment: Some(bad), ..Options::default() };
        assert!(matches!(Layout::new(&plain, vec![], &options), Err(Error::PlanAlignment { .. })), "{bad}");
    }
    marked.set(ALIGNMENT_KEY, "wide");
    assert!(matches!(Layout::new(&marked, vec![], &Options::default()), Err(Error::PlanAlignment { .. })));
}

#[test]
fn splits_by_count() {
    let m = Metadata::new();
    assert_eq!(counts(&layout(&m, 7, &by(SplitBy::MaxTensors(3)))), [3, 3, 1]);
    assert_eq!(counts(&layout(&m, 6, &by(SplitBy::MaxTensors(3)))), [3, 3]);
    assert_eq!(counts(&layout(&m, 2, &by(SplitBy::MaxTensors(usize::MAX)))), [2]);
    assert_eq!(counts(&layout(&m, 0, &by(SplitBy::MaxTensors(3)))), [0]);
    assert_eq!(counts(&layout(&m, 3, &by(SplitBy::Counts(vec![0, 2, 1])))), [0, 2, 1]);
    let bare_first = Options { no_tensor_first_split: true, ..by(SplitBy::MaxTensors(2)) };
    assert_eq!(counts(&layout(&m, 3, &bare_first)), [0, 2, 1]);
}

#[test]
fn splits_by_size_stay_within_it() {
    let m = Metadata::from(vec![Kv::new("general.name", "x".repeat(500).as_str())]);
    let n = 40;
    for max in [1, 500, 800, 1000, 1500, 3000, u64::MAX] {
        let layout = layout(&m, n, &by(SplitBy::MaxBytes(max)));
        assert_eq!(counts(&layout).iter().sum::<usize>(), n);
        for (i, shard) in layout.shards().iter().enumerate() {
            assert!(shard.size <= max || shard.tensors.len() == 1, "{max}: shard {i} has {}", shard.size);
            // one more tensor (40 bytes of entry, 64 of data) would be too many
            let last = i + 1 == layout.shards().len();
            let more =
                (shard.header.len() as u64 + 40).next_multiple_of(32) + 64 * (shard.tensors.len() as u64 + 1);
            assert!(last || more > max, "{max}: shard {i} could hold another tensor");
        }
    }
    let bare_first = Options { no_tensor_first_split: true, ..by(SplitBy::MaxBytes(1000)) };
    assert_eq!(layout(&m, n, &bare_first).shards()[0].tensors, 0..0);
}

#[test]
fn shards_carry_their_keys_and_not_the_old_ones() {
    let mut m = Metadata::new();
    m.set("general.name", "m");
    m.set(split::COUNT, 9u16);
    m.set(ALIGNMENT_KEY, 64u32);
    let has = |shard: &ShardLayout, key: &str, value: Value| {
        let pair = encode_kv(key, &value);
        shard.header.windows(pair.len()).any(|w| w == pair)
    };
    let split_up = layout(&m, 3, &by(SplitBy::MaxTensors(2)));
    for (i, shard) in split_up.shards().iter().enumerate() {
        assert!(has(shard, split::NO, Value::U16(i as u16)));
        assert!(has(shard, split::COUNT, Value::U16(2)));
        assert!(has(shard, split::TENSORS, Value::I32(3)));
        assert!(has(shard, ALIGNMENT_KEY, Value::U32(64)), "shard {i} cannot be read without");
        assert_eq!(has(shard, "general.name", Value::from("m")), i == 0);
    }
    let whole = layout(&m, 3, &Options::default());
    assert!(!whole.shards()[0].header.windows(6).any(|w| w == b"split."));
}

#[test]
fn what_cannot_be_planned_is_refused() {
    let refuse = |metadata: &Metadata, tensors: Vec<TensorSpec>, options: &Options| {
        Layout::new(metadata, tensors, options).expect_err("refused")
    };
    let (m, o) = (Metadata::new(), Options::default());
    for split in [SplitBy::MaxBytes(0), SplitBy::MaxTensors(0), SplitBy::Counts(vec![1])] {
        assert!(matches!(refuse(&m, tensors(2), &by(split)), Error::PlanSplit { .. }));
    }
    let twice = [tensors(1), tensors(1)].concat();
    assert!(matches!(refuse(&m, twice, &o), Error::PlanDuplicateTensor { .. }));
    let keys = Metadata::from(vec![Kv::new("k", 1u8), Kv::new("k", 2u8)]);
    assert!(matches!(refuse(&keys, vec![], &o), Error::PlanDuplicateKey { .. }));
    let long = Metadata::from(vec![Kv::new("k".repeat(65_536), 1u8)]);
    assert!(matches!(refuse(&long, vec![], &o), Error::PlanName { .. }));

    let spec = |dims: &[u64], ty, size| {
        let dims = dims.to_vec();
        vec![TensorSpec { name: "t".to_string(), dims, ty, size }]
    };
    let f32 = TensorType::Known(QuantType::F32);
    assert!(matches!(refuse(&m, spec(&[4], f32, 15), &o), Error::PlanSize { expected: 16, size: 15, .. }));
    assert!(matches!(refuse(&m, spec(&[1; 5], f32, 4), &o), Error::PlanDims { .. }));
    let q4_k = TensorType::Known(QuantType::Q4_K);
    assert!(matches!(refuse(&m, spec(&[100], q4_k, 4), &o), Error::PlanShape { .. }));
    let unknown = TensorType::Unknown(9999);
    assert!(matches!(refuse(&m, spec(&[1], unknown, u64::MAX), &o), Error::PlanTooLarge));
    assert!(matches!(refuse(&m, spec(&[1], unknown, 1 << 63), &o), Error::PlanTooLarge));
    assert!(matches!(
        refuse(&m, tensors(65_536), &by(SplitBy::MaxTensors(1))),
        Error::PlanCount { what: "shards", .. }
    ));
    let many = (0..1 << 20).map(|_| Kv::new("k", 1u8)).collect();
    assert!(matches!(refuse(&many, vec![], &o), Error::PlanCount { .. }));
}
