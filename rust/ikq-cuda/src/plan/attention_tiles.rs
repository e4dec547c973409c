//! Launches of attention in tiles of queries, on tensor cores (`attention_tiles.cu`).

use ikq_formats::QuantType;

use super::heads::{Attend, VALUES};
use super::{Kernel, Plan, geometry, i32_of};
use crate::error::Error;

/// A tile: the rows that a block computes, each a column and one of its query heads, the keys that it has at a time, and
/// the most elements of a value. Results have the same bits for tiles with as many keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadTile {
    Rows64,
    Rows16,
    Wide32,
    Wide16,
}

use HeadTile::{Rows16, Rows64, Wide16, Wide32};

impl HeadTile {
    /// The most columns of a tile.
    pub const MOST_COLUMNS: usize = 64;

    fn rows(self) -> usize {
        match self {
            Rows64 => 64,
            Wide32 => 32,
            Rows16 | Wide16 => 16,
        }
    }

    fn keys(self) -> usize {
        match self {
            Rows64 | Rows16 => 64,
            Wide32 | Wide16 => 32,
        }
    }

    fn ending(self) -> &'static str {
        match self {
            Rows64 => "_r64",
            Rows16 => "_r16",
            Wide32 => "_w32",
            Wide16 => "_w16",
        }
    }

    /// Bytes of shared memory that the launch takes.
    fn bytes(self, attend: &Attend, latent: bool) -> usize {
        // rows of halves, an odd number of chunks of 16 bytes or a multiple of eight of them
        let chunks = |n: usize| match n.div_ceil(16) * 2 {
            chunks if chunks.is_multiple_of(8) => chunks,
            chunks => chunks | 1,
        };
        // latent rows are there twice instead, for this step and the next
        let values = if latent { attend.n_k } else { attend.n_v };
        16 * ((self.rows() + self.keys()) * chunks(attend.n_k) + self.keys() * chunks(values))
    }

    /// Bytes that the kernel's own arrays take beside them.
    fn fixed_bytes(self) -> usize {
        let exchanged = if self == Rows64 { 0 } else { 4 * 4 + 2 * self.keys() + 16 };
        32 + self.rows() * (8 + exchanged)
    }

    /// The tile for `attend` with columns of `n_runs` texts, where blocks can have `shared_bytes` bytes of shared memory;
    /// none if the kernel does not take it: floats of more bits than halves have, sizes that are no multiples of
    /// 8, values of more than 512 elements, and heads that do not fit the shared memory.
    pub fn of(attend: &Attend, latent: bool, n_runs: usize, shared_bytes: usize) -> Option<HeadTile> {
        let is_taken = |ty| !matches!(ty, QuantType::F32 | QuantType::BF16);
        let is_whole = |n: usize| n.is_multiple_of(8);
        if !is_taken(attend.keys)
            || !is_taken(attend.values)
            || !is_whole(attend.n_k)
            || !is_whole(attend.n_v)
            || !is_whole(attend.n_v_row)
        {
            return None;
        }
        let tiles: &[HeadTile] = match attend.n_v {
            0..=128 => &[Rows64, Rows16],
            129..=256 => &[Wide32, Wide16],
            257..=512 => &[Wide16],
            _ => return None,
        };
        let fits = |tile: &HeadTile| tile.bytes(attend, latent) + tile.fixed_bytes() <= shared_bytes;
        let rows = attend.n_columns * (attend.n_heads / attend.n_kv.max(1));
        // fewer rows than a small tile has, of each text, leave the others without work
        let is_small = rows <= 16 * n_runs;
        tiles.iter().copied().find(|tile| fits(tile) && !(is_small && tile.rows() > 16))
    }
}

/// Sizes and options of [`Call::AttendTiles`](super::Call::AttendTiles).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttendTiles {
    /// Sizes and options as of the other kernel; `n_columns` of the step's columns are computed.
    pub attend: Attend,
    pub tile: HeadTile,
    /// Whether values are the first elements of keys.
    pub latent: bool,
    /// The step's runs of columns of one text.
    pub n_runs: usize,
    /// The first of the columns that are computed.
    pub first_column: usize,
}

impl AttendTiles {
    /// The plan of the kernel that computes splits; [`Combine`](super::Combine) joins them.
    pub(super) fn plan(&self) -> Result<Plan, Error> {
        let a = &self.attend;
        a.check("attend_tiles")?;
        let right = HeadTile::of(a, self.latent, self.n_runs, usize::MAX).map(HeadTile::keys);
        if right != Some(self.tile.keys()) || !a.span.is_multiple_of(64) || self.n_runs == 0 {
            let why = format!("{a:?} in tiles {:?} of {} runs", self.tile, self.n_runs);
            return Err(Error::Plan { name: "attend_tiles".into(), why });
        }
        // each run may have a tile that is not full
        let n_tiles = a.n_columns * (a.n_heads / a.n_kv) / self.tile.rows() + self.n_runs;
        let shared = u32::try_from(self.tile.bytes(a, self.latent)).unwrap_or(u32::MAX);
        let kernel = Kernel::of_type("attention_tiles.cu", "attend_tiles", a.keys)?.and(VALUES, a.values)?;
        let mut arguments = vec![
            ("q", None),
            ("k", None),
            ("v", None),
            ("pages", None),
            ("first", None),
            ("end", None),
            ("runs", None),
            ("partial", None),
            ("n_runs", Some(i32_of(self.n_runs)?)),
            ("column_0", Some(i32_of(self.first_column)?)),
            ("n_columns", Some(i32_of(a.n_columns)?)),
        ];
        arguments.extend(a.sizes()?);
        Ok(Plan {
            kernel: kernel.ending(self.tile.ending()),
            geometry: geometry([n_tiles, a.n_kv, a.n_splits], 128)?.with_shared(shared),
            arguments,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Call;

    const HOPPER: usize = 227 << 10;
    const TURING: usize = 64 << 10;

    fn attend(n_columns: usize, n_heads: usize, n_kv: usize, n_k: usize, n_v: usize) -> Attend {
        Attend {
            keys: QuantType::F16,
            values: QuantType::F16,
            n_columns,
            n_heads,
            n_kv,
            n_k,
            n_v,
            n_v_row: n_k,
            max_pages: 4,
            span: 1024,
            n_splits: 2,
            scale: 1.0,
            softcap: None,
        }
    }

    #[test]
    fn tiles_are_as_large_as_texts_and_heads_allow() {
        let prompt = attend(300, 32, 4, 128, 128);
        let of = |a: &Attend, n_runs, shared| HeadTile::of(a, false, n_runs, shared);
        assert_eq!(of(&prompt, 1, HOPPER), Some(Rows64));
        assert_eq!(of(&prompt, 1, TURING), Some(Rows64));
        // twelve texts with a token of eight heads each
        assert_eq!(of(&attend(12, 32, 4, 128, 128), 12, HOPPER), Some(Rows16));
        assert_eq!(of(&attend(300, 8, 4, 256, 256), 1, HOPPER), Some(Wide32));
        assert_eq!(of(&attend(300, 8, 4, 256, 256), 1, TURING), Some(Wide32));
        assert_eq!(of(&attend(8, 4, 4, 256, 256), 8, HOPPER), Some(Wide16));
        let latent = attend(300, 16, 1, 576, 512);
        assert_eq!(HeadTile::of(&latent, true, 1, 99 << 10), Some(Wide16));
        assert_eq!(HeadTile::of(&latent, true, 1, TURING), None);
        for wrong in [
            Attend { keys: QuantType::F32, ..prompt },
            Attend { values: QuantType::BF16, ..prompt },
            Attend { n_k: 36, ..prompt },
            Attend { n_v: 520, n_v_row: 520, ..prompt },
        ] {
            assert_eq!(of(&wrong, 1, HOPPER), None);
        }
    }

    #[test]
    fn every_tile_that_runs_may_have_gets_a_block() {
        let tiles = AttendTiles {
            attend: attend(40, 8, 2, 128, 128),
            tile: Rows64,
            latent: false,
            n_runs: 3,
            first_column: 5,
        };
        let plan = Call::AttendTiles(tiles).plan().expect("a plan");
        assert_eq!(plan.kernel.name(), "attend_tiles_f16_f16_r64");
        assert_eq!((plan.geometry.grid, plan.geometry.shared_bytes), ([2 + 3, 2, 2], 48 << 10));
        assert!(Call::AttendTiles(AttendTiles { tile: Wide32, ..tiles }).plan().is_err(), "other sums");
        let odd = Attend { span: 100, ..tiles.attend };
        assert!(Call::AttendTiles(AttendTiles { attend: odd, ..tiles }).plan().is_err());
    }
}
