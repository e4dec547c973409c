//! Launches of matrix products (`mmq.cu`, `mmq_upgate.cu`, and `mmf.cu` for floats), which compute tiles of columns on tensor cores, and what
//! experts need beside them.

use ikq_formats::QuantType;

use super::ffn::results;
use super::products::expert_bytes;
use super::{GATE, Glu, Kernel, MOST_GRID, Plan, check_row, geometry, i32_of, i64_of, optional, reads_codes};
use crate::error::Error;
use crate::gpu::Argument;
use crate::loader::Facts;

/// Threads of a block, the rows of one matrix that it computes, and those of each of up and gate.
const THREADS: u32 = 512;
const ROWS: usize = 128;
const PAIRED_ROWS: usize = 64;

/// The same of `mmf.cu`, whose tiles have 64 columns.
const FLOAT_THREADS: u32 = 128;
const FLOAT_ROWS: usize = 64;

/// Types with a scale for every 16 elements, and IQ3_S. A tile of 128 columns would take more registers than a thread can
/// have, so the kernels for it are empty (`MOST_COLUMNS` in `tile.cuh`).
const NOT_WIDEST: [QuantType; 13] = [
    QuantType::Q2_K,
    QuantType::Q3_K,
    QuantType::Q6_K,
    QuantType::IQ1_M,
    QuantType::IQ2_XS,
    QuantType::IQ2_S,
    QuantType::IQ2_K,
    QuantType::IQ3_S,
    QuantType::IQ3_K,
    QuantType::IQ4_K,
    QuantType::IQ5_K,
    QuantType::IQ6_K,
    QuantType::NVFP4,
];

/// How many columns a block computes; results have the same bits for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    Narrow = 32,
    Wide = 64,
    Widest = 128,
}

impl Tile {
    fn columns(self) -> usize {
        self as usize
    }

    /// Whether there are kernels with this tile for weights of these types.
    fn computes(self, types: &[QuantType]) -> bool {
        match types.iter().all(|ty| reads_codes(*ty)) {
            true => self != Tile::Widest || !types.iter().any(|ty| NOT_WIDEST.contains(ty)),
            false => self == Tile::Wide,
        }
    }

    fn check(self, kernel: &str, types: &[QuantType]) -> Result<(), Error> {
        match self.computes(types) {
            true => Ok(()),
            false => {
                let names: Vec<_> = types.iter().map(|ty| ty.name()).collect();
                let why = format!("no tiles of {} columns for {}", self.columns(), names.join(" and "));
                Err(Error::Plan { name: kernel.into(), why })
            }
        }
    }

    fn shared_bytes(self) -> u32 {
        384 * self as u32 + 49152
    }

    fn ending(self) -> &'static str {
        match self {
            Tile::Narrow => "_t32",
            Tile::Wide => "_t64",
            Tile::Widest => "_t128",
        }
    }
}

/// Pairs of a token and one of its experts, sorted by expert; pair p reads column p / `k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouped {
    pub n_pairs: usize,
    pub k: usize,
    pub n_experts: usize,
}

impl Grouped {
    /// Whether so many fit a launch.
    pub fn fits(self) -> bool {
        Columns::Grouped(self).grid_y(Tile::Narrow) <= MOST_GRID
    }
}

/// The columns of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// All of one matrix, so many.
    Plain(usize),
    /// Those of each expert.
    Grouped(Grouped),
}

impl Columns {
    /// The tile for these columns and `n_rows` rows of these types on a device. Every tile decodes the weights again, so the fewest are
    /// best: that of all columns (of each expert, on average), or the widest, of which a block takes the least time for a
    /// column. But with so few blocks that multiprocessors would have none, narrower tiles make more of them.
    pub fn tile(self, types: &[QuantType], n_rows: usize, device: &Facts) -> Tile {
        let (n, n_groups) = match self {
            Columns::Plain(n) => (n, 1),
            Columns::Grouped(g) => (g.n_pairs.div_ceil(g.n_experts.max(1)), g.n_experts.max(1)),
        };
        if !types.iter().all(|ty| reads_codes(*ty)) {
            return Tile::Wide;
        }
        let fits = |tile: Tile| tile.computes(types) && tile.shared_bytes() as usize <= device.shared_bytes;
        let n_blocks = n_rows.div_ceil(ROWS) * n_groups * n.div_ceil(Tile::Widest.columns());
        if n > Tile::Wide.columns() && fits(Tile::Widest) && n_blocks >= device.n_multiprocessors {
            Tile::Widest
        } else if n > Tile::Narrow.columns() && fits(Tile::Wide) {
            Tile::Wide
        } else {
            Tile::Narrow
        }
    }

    fn grid_y(self, tile: Tile) -> usize {
        match self {
            Columns::Plain(n) => n.div_ceil(tile.columns()),
            // each expert may have a tile that is not full
            Columns::Grouped(g) => g.n_pairs.div_ceil(tile.columns()) + g.n_experts,
        }
    }

    fn n(self) -> usize {
        match self {
            Columns::Plain(n) => n,
            Columns::Grouped(g) => g.n_pairs,
        }
    }

    /// The arguments that say which columns belong to which expert.
    fn arguments(self) -> Result<[(&'static str, Option<Argument>); 4], Error> {
        let (is_grouped, n_experts, k) = match self {
            Columns::Plain(_) => (false, 0, 1),
            Columns::Grouped(g) => (true, g.n_experts, g.k),
        };
        Ok([
            ("bounds", optional(is_grouped)),
            ("list", optional(is_grouped)),
            ("n_experts", Some(i32_of(n_experts)?)),
            ("k", Some(i32_of(k)?)),
        ])
    }

    /// Bytes from one expert to the next.
    fn expert_bytes(self, ty: QuantType, n_rows: usize, n: usize) -> Result<Option<Argument>, Error> {
        match self {
            Columns::Plain(_) => Ok(Some(Argument::I64(0))),
            Columns::Grouped(_) => Ok(Some(expert_bytes(ty, n_rows, n)?)),
        }
    }

    fn check(self, kernel: &str) -> Result<(), Error> {
        match self {
            Columns::Grouped(Grouped { n_pairs, k, n_experts })
                if k == 0 || n_experts == 0 || !n_pairs.is_multiple_of(k) =>
            {
                let why = format!("{n_pairs} pairs of {k} of {n_experts} experts each");
                Err(Error::Plan { name: kernel.into(), why })
            }
            _ => Ok(()),
        }
    }
}

fn check_codes(kernel: &str, ty: QuantType, n: usize) -> Result<(), Error> {
    check_row(ty, n)?;
    match reads_codes(ty) && n.is_multiple_of(32) {
        true => Ok(()),
        false => {
            let why = format!("rows of {n} elements of {} are no blocks of 32 codes", ty.name());
            Err(Error::Plan { name: kernel.into(), why })
        }
    }
}

/// Sizes and options of [`Call::Mmq`](super::Call::Mmq).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mmq {
    pub ty: QuantType,
    /// Rows of the matrix, or of each expert's matrix.
    pub n_rows: usize,
    pub n: usize,
    pub columns: Columns,
    pub tile: Tile,
    /// Floats from the results of one column to those of the next.
    pub stride: usize,
    pub bias: bool,
    pub residual: bool,
}

impl Mmq {
    pub(super) fn plan(&self) -> Result<Plan, Error> {
        let codes = reads_codes(self.ty);
        match codes {
            true => check_codes("mmq", self.ty, self.n)?,
            false => check_row(self.ty, self.n)?,
        }
        self.columns.check("mmq")?;
        self.tile.check("mmq", &[self.ty])?;
        let bytes = self.columns.expert_bytes(self.ty, self.n_rows, self.n)?;
        let mut arguments = vec![("w", None), ("expert_bytes", bytes)];
        arguments.extend(self.columns.arguments()?);
        arguments.push(("x", None));
        arguments.extend(codes.then_some(("ds", None)));
        arguments.extend([
            ("bias", optional(self.bias)),
            ("residual", optional(self.residual)),
            ("y", None),
            ("n_rows", Some(i32_of(self.n_rows)?)),
            ("n", Some(i32_of(self.n)?)),
            ("n_columns", Some(i32_of(self.columns.n())?)),
            ("y_stride", Some(i64_of(self.stride)?)),
        ]);
        let grid = |rows| [self.n_rows.div_ceil(rows), self.columns.grid_y(self.tile), 1];
        let (kernel, geometry) = match codes {
            true => (
                Kernel::of_type("mmq.cu", "mmq", self.ty)?.ending(self.tile.ending()),
                geometry(grid(ROWS), THREADS)?.with_shared(self.tile.shared_bytes()),
            ),
            false => (Kernel::of_type("mmf.cu", "mmf", self.ty)?, geometry(grid(FLOAT_ROWS), FLOAT_THREADS)?),
        };
        Ok(Plan { kernel, geometry, arguments })
    }
}

/// Sizes and options of [`Call::MmqUpGate`](super::Call::MmqUpGate).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MmqUpGate {
    pub up: QuantType,
    pub gate: QuantType,
    /// Rows of each matrix, and elements of a row.
    pub n_rows: usize,
    pub n: usize,
    pub columns: Columns,
    pub tile: Tile,
    pub glu: Glu,
    pub bias_up: bool,
    pub bias_gate: bool,
    /// Whether results are written as codes, which products read; otherwise as floats.
    pub codes: bool,
}

impl MmqUpGate {
    pub(super) fn plan(&self) -> Result<Plan, Error> {
        let name = "mmq_upgate";
        check_codes(name, self.up, self.n)?;
        check_codes(name, self.gate, self.n)?;
        self.columns.check(name)?;
        self.tile.check(name, &[self.up, self.gate])?;
        if self.codes && !self.n_rows.is_multiple_of(32) {
            let why = format!("{} rows are no whole blocks of 32", self.n_rows);
            return Err(Error::Plan { name: name.into(), why });
        }
        let bytes = |ty| self.columns.expert_bytes(ty, self.n_rows, self.n);
        let mut arguments = vec![
            ("up", None),
            ("gate", None),
            ("expert_bytes_up", bytes(self.up)?),
            ("expert_bytes_gate", bytes(self.gate)?),
        ];
        arguments.extend(self.columns.arguments()?);
        arguments.extend([
            ("x", None),
            ("ds", None),
            ("bias_up", optional(self.bias_up)),
            ("bias_gate", optional(self.bias_gate)),
        ]);
        arguments.extend(self.glu.arguments());
        arguments.extend(results(self.codes, (self.n_rows, self.n), self.columns.n())?);
        let grid = [self.n_rows.div_ceil(PAIRED_ROWS), self.columns.grid_y(self.tile), 1];
        let kernel = Kernel::of_type("mmq_upgate.cu", name, self.up)?.and(GATE, self.gate)?;
        Ok(Plan {
            kernel: kernel.ending(self.tile.ending()),
            geometry: geometry(grid, THREADS)?.with_shared(self.tile.shared_bytes()),
            arguments,
        })
    }
}

/// The plan of [`Call::Sort`](super::Call::Sort).
pub(super) fn sort(n_pairs: usize, n_experts: usize) -> Result<Plan, Error> {
    if n_experts > super::ffn::MOST_EXPERTS {
        let why = format!("{n_experts} experts; it takes up to {}", super::ffn::MOST_EXPERTS);
        return Err(Error::Plan { name: "moe_sort".into(), why });
    }
    Ok(Plan {
        kernel: Kernel::whole("router.cu", "moe_sort"),
        geometry: geometry([1, 1, 1], 256)?,
        arguments: vec![
            ("ids", None),
            ("bounds", None),
            ("rows", None),
            ("n", Some(i32_of(n_pairs)?)),
            ("n_experts", Some(i32_of(n_experts)?)),
        ],
    })
}

/// Sizes and options of [`Call::SumSlots`](super::Call::SumSlots).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SumSlots {
    pub n_rows: usize,
    pub n_tokens: usize,
    /// Slots of a token.
    pub k: usize,
    pub residual: bool,
}

impl SumSlots {
    pub(super) fn plan(&self) -> Result<Plan, Error> {
        Ok(Plan {
            kernel: Kernel::whole("slots.cu", "sum_slots"),
            geometry: geometry([self.n_rows.div_ceil(256), self.n_tokens, 1], 256)?,
            arguments: vec![
                ("products", None),
                ("ids", None),
                ("weights", None),
                ("k", Some(i32_of(self.k)?)),
                ("residual", optional(self.residual)),
                ("y", None),
                ("n_rows", Some(i32_of(self.n_rows)?)),
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Call;

    /// A device with 100 multiprocessors.
    fn device(shared_bytes: usize) -> Facts {
        Facts {
            ordinal: 0,
            name: String::new(),
            sm: 80,
            memory_bytes: 0,
            n_multiprocessors: 100,
            shared_bytes,
        }
    }

    #[test]
    fn tiles_are_as_wide_as_columns_and_the_device_allow() {
        let (hopper, ada, turing) = (227 << 10, 99 << 10, 64 << 10);
        for (n, shared_bytes, tile) in [
            (9, hopper, Tile::Narrow),
            (32, hopper, Tile::Narrow),
            (33, hopper, Tile::Wide),
            (64, hopper, Tile::Wide),
            (65, hopper, Tile::Widest),
            (512, ada, Tile::Widest),
            (512, turing, Tile::Narrow),
        ] {
            assert_eq!(Columns::Plain(n).tile(&[QuantType::Q4_K], 12800, &device(shared_bytes)), tile, "{n}");
            let grouped = Grouped { n_pairs: 16 * n, k: 4, n_experts: 16 };
            assert_eq!(
                Columns::Grouped(grouped).tile(&[QuantType::Q4_K], 896, &device(shared_bytes)),
                tile,
                "{n} of each expert"
            );
        }
    }

    #[test]
    fn every_multiprocessor_has_a_block_before_tiles_are_the_widest() {
        let device = device(99 << 10);
        let tile =
            |columns: Columns, n_rows| columns.tile(&[QuantType::IQ4_KS, QuantType::Q4_K], n_rows, &device);
        // 25 tiles of rows by four of columns are 100 blocks
        assert_eq!(tile(Columns::Plain(512), 25 * 128), Tile::Widest);
        assert_eq!(tile(Columns::Plain(512), 24 * 128), Tile::Wide);
        let experts = |n_experts| Columns::Grouped(Grouped { n_pairs: 100 * n_experts, k: 1, n_experts });
        assert_eq!(tile(experts(17), 768), Tile::Widest);
        assert_eq!(tile(experts(16), 768), Tile::Wide);
    }

    #[test]
    fn the_widest_tiles_are_not_for_scales_of_16_elements() {
        let types = [QuantType::IQ4_KS, QuantType::Q6_K];
        assert_eq!(Columns::Plain(512).tile(&types, 12800, &device(99 << 10)), Tile::Wide);
        let why = Tile::Widest.check("mmq_upgate", &types).expect_err("no kernel").to_string();
        assert!(why.contains("IQ4_KS and Q6_K"), "{why}");
    }

    #[test]
    fn every_tile_that_experts_may_have_gets_a_block() {
        let columns = Columns::Grouped(Grouped { n_pairs: 100, k: 2, n_experts: 5 });
        let mmq = Mmq {
            ty: QuantType::Q4_K,
            n_rows: 130,
            n: 256,
            columns,
            tile: Tile::Narrow,
            stride: 130,
            bias: false,
            residual: false,
        };
        let plan = Call::Mmq(mmq).plan().expect("a plan");
        assert_eq!(plan.kernel.name(), "mmq_q4_k_t32");
        assert_eq!((plan.geometry.grid, plan.geometry.shared_bytes), ([2, 4 + 5, 1], 61440));
        let floats = Mmq { ty: QuantType::F16, ..mmq };
        assert!(Call::Mmq(floats).plan().is_err(), "floats have tiles of 64 columns");
        let plan = Call::Mmq(Mmq { tile: Tile::Wide, ..floats }).plan().expect("a plan");
        assert_eq!((plan.kernel.name(), plan.geometry.grid), ("mmf_f16".into(), [3, 2 + 5, 1]));
        let odd = Columns::Grouped(Grouped { n_pairs: 101, k: 2, n_experts: 5 });
        assert!(Call::Mmq(Mmq { columns: odd, ..mmq }).plan().is_err());
        let many = Grouped { n_pairs: 32 * MOST_GRID, k: 1, n_experts: 1 };
        assert!(!many.fits());
        assert!(Grouped { n_pairs: many.n_pairs - 32, ..many }.fits());
    }
}
