//! Moves against the slow way (unpack rows, pack the group), and the ways back.

use super::*;
use QuantType::*;

fn interleaved() -> impl Iterator<Item = QuantType> {
    QuantType::ALL.iter().copied().filter(|t| t.is_interleaved())
}

/// Bytes that are the same everywhere.
fn bytes(n: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    (0..n)
        .map(|_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 56) as u8
        })
        .collect()
}

/// The group as the layouts alone say: headers, then per column all numbers of all rows.
fn slow_group(ty: QuantType, rows: &[u8], n_per_row: usize) -> Vec<u8> {
    let t = ty.info();
    let (group, row) = (layout(ty).unwrap(), row_form(ty).unwrap().layout());
    let row_bytes = rows.len() / t.rows;
    let mut out: Vec<u8> =
        rows.chunks_exact(row_bytes).flat_map(|r| &r[..t.row_header_bytes]).copied().collect();
    let n_blocks = group.block_size / row.block_size;
    for column in 0..n_per_row / group.block_size {
        let mut values = Vec::new();
        for r in rows.chunks_exact(row_bytes) {
            for block in 0..n_blocks {
                let at = t.row_header_bytes + (column * n_blocks + block) * row.bytes;
                let mut numbers = vec![0; row.n_values()];
                row.unpack(&r[at..at + row.bytes], &mut numbers);
                values.extend(numbers);
            }
        }
        let mut packed = vec![0; group.bytes];
        group.pack(&values, &mut packed);
        out.extend(packed);
    }
    out
}

#[test]
fn moves_do_what_the_layouts_say_and_undo_it() {
    for ty in interleaved() {
        let n_per_row = 512;
        let size = ty.info().rows * row_bytes(ty, n_per_row).unwrap();
        let rows = bytes(size, u64::from(ty.id()));
        let mut group = vec![0x55; size];
        interleave_group(ty, &rows, n_per_row, &mut group).unwrap();
        assert_eq!(group, slow_group(ty, &rows, n_per_row), "{ty:?}");
        let mut again = vec![0x55; size];
        deinterleave_group(ty, &group, n_per_row, &mut again).unwrap();
        assert_eq!(again, rows, "{ty:?}");
    }
}

#[test]
fn headers_come_first() {
    let rows: Vec<u8> = (0..4).flat_map(|k| [vec![k; 4], vec![0; 136]].concat()).collect();
    let mut group = vec![0; rows.len()];
    interleave_group(IQ4_KS_R4, &rows, 256, &mut group).unwrap();
    assert_eq!(group[..16], [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]);
}

#[test]
fn wrong_shapes_are_refused() {
    let mut out = vec![0; 64];
    assert!(matches!(interleave_group(Q4_0, &[], 32, &mut out), Err(Error::Repack { .. })));
    assert!(matches!(interleave_group(Q4_0_R8, &[], 33, &mut out), Err(Error::RowLength { .. })));
    assert!(matches!(interleave_group(BF16_R16, &[], 33, &mut out), Err(Error::RowLength { .. })));
    assert!(matches!(interleave_group(Q4_0_R8, &[0; 144], 32, &mut out), Err(Error::ByteCount { .. })));
}
