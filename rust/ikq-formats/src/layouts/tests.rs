//! Every type's layout: that it builds (which proves the tiling), and that pack and unpack are
//! inverse to each other.

use super::*;
use crate::interleave::{RowForm, row_form};
use crate::layout::{Piece, Word};
use QuantType::*;

/// xorshift64*: numbers for tests that are the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

const UNLAID: [QuantType; 4] = [I64, F64, Q8_K64, Q8_K16];

fn all() -> impl Iterator<Item = (QuantType, &'static Layout)> {
    QuantType::ALL.iter().filter(|t| !UNLAID.contains(t)).map(|t| (*t, layout(*t).expect("a layout")))
}

#[test]
fn sizes_are_those_of_the_table() {
    for (ty, l) in all() {
        let t = ty.info();
        assert_eq!(l.rows, t.rows, "{ty:?}");
        let blocks = match ty {
            // elements per unit differ from the table's block, see `layout`
            I2_S => 32,
            _ => l.block_size / t.block_size,
        };
        assert_eq!(l.bytes, blocks * t.rows * t.block_bytes, "{ty:?}");
    }
    for ty in UNLAID {
        assert!(matches!(layout(ty), Err(Error::NoLayout { .. })), "{ty:?}");
    }
}

/// A block put together from its words.
fn packed_by_words(words: &[Word], values: &[u32], bytes: usize) -> Vec<u8> {
    let bits = |p: &Piece| values[p.value as usize] & p.mask;
    let word = |w: &Word| {
        let left = w.left.iter().fold(0, |word, p| word | bits(p) << p.by);
        w.right.iter().fold(left, |word, p| word | bits(p) >> p.by) ^ w.flip
    };
    let mut block: Vec<u8> = words.iter().flat_map(|w| word(w).to_le_bytes()).collect();
    assert!(block[bytes..].iter().all(|b| *b == 0), "bits beyond the block");
    block.truncate(bytes);
    block
}

#[test]
fn words_make_the_bytes_that_packing_writes() {
    let mut random = Random(3);
    let mut n = 0;
    for (ty, l) in all() {
        let Some(words) = l.words() else { continue };
        n += 1;
        for _ in 0..20 {
            // bits above a number's width do not count
            let values: Vec<u32> = (0..l.n_values()).map(|_| random.next() as u32).collect();
            let mut block = vec![0x55; l.bytes];
            l.pack(&values, &mut block);
            assert_eq!(packed_by_words(words, &values, l.bytes), block, "{ty:?}");
        }
    }
    assert!(n >= 30, "{n} layouts have words");
}

#[test]
fn packing_unpacked_bytes_gives_them_back() {
    let mut random = Random(1);
    for (ty, l) in all() {
        // in these some bytes stand for the same trits
        if [IQ1_BN, TQ1_0].contains(&ty) {
            continue;
        }
        for _ in 0..20 {
            let block: Vec<u8> = (0..l.bytes).map(|_| random.next() as u8).collect();
            let mut values = vec![0xdead_beef; l.rows * l.n_values()];
            l.unpack(&block, &mut values);
            l.check(ty, &values).expect("unpacked numbers are legal");
            let mut again = vec![0x55; l.bytes];
            l.pack(&values, &mut again);
            assert_eq!(again, block, "{ty:?}");
        }
    }
}

#[test]
fn unpacking_packed_numbers_gives_them_back() {
    let mut random = Random(2);
    for (ty, l) in all() {
        for _ in 0..20 {
            let mut values: Vec<u32> = (0..l.rows)
                .flat_map(|_| l.fields.iter().flat_map(|f| std::iter::repeat_n(f.levels, f.count)))
                .map(|levels| (random.next() % levels) as u32)
                .collect();
            while let Err(Error::CodesClash { index, .. }) = l.check(ty, &values) {
                values[8 + index] ^= 1;
            }
            l.check(ty, &values).expect("numbers are legal");
            let mut block = vec![0x55; l.bytes];
            l.pack(&values, &mut block);
            let mut again = vec![0xdead_beef; values.len()];
            l.unpack(&block, &mut again);
            assert_eq!(again, values, "{ty:?}");
        }
    }
}

#[test]
fn an_interleaved_type_has_the_fields_of_its_rows() {
    let facts = |l: &Layout, m: usize| -> Vec<_> {
        l.fields.iter().map(|f| (f.name, m * f.count, f.bits, f.levels, f.signed)).collect()
    };
    for (ty, group) in all().filter(|(ty, _)| ty.is_interleaved()) {
        let form = row_form(ty).expect("interleaved types have rows");
        let row = form.layout();
        assert_eq!(matches!(form, RowForm::Plain(_)), ty.info().base.is_some(), "{ty:?}");
        assert_eq!(facts(group, 1), facts(row, group.block_size / row.block_size), "{ty:?}");
    }
}

#[test]
fn a_group_of_iq4_kss_codes_with_odd_parity_harms_no_other() {
    let l = layout(IQ4_KSS).expect("a layout");
    let mut values = vec![0; l.n_values()];
    values[..8].fill(0xa5);
    // elements 34, 35, 50, 51 share a word; the first has one bit
    values[8 + 34] = 1;
    assert_eq!(l.check(IQ4_KSS, &values), Err(Error::CodesClash { ty: IQ4_KSS, index: 34 }));
    let mut block = vec![0; l.bytes];
    l.pack(&values, &mut block);
    let mut again = vec![0; values.len()];
    l.unpack(&block, &mut again);
    values[8 + 51] ^= 8;
    assert_eq!(again, values);
}

#[test]
fn a_type_s_layout_names_q_last() {
    for (ty, l) in all() {
        let at = l.fields.iter().position(|f| f.name == "q");
        assert!(at.is_none_or(|at| at + 1 == l.fields.len()), "{ty:?}");
    }
}
