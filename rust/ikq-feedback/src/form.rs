//! [`Form`]: how the fields of a block give the scale a and the offset b of a sub-block: `y = a level + b`.

use half::f16;
use ikq_formats::Layout;

/// The largest number of scales that are tried for a sub-block.
pub(crate) const MOST_CHOICES: usize = 9;

/// How a type forms the scale and the offset of a sub-block from the fields of its block.
#[derive(Clone, Copy)]
pub(crate) struct Form {
    /// Elements that share a scale.
    pub sub: usize,
    pub scale: Scale,
}

#[derive(Clone, Copy)]
pub(crate) enum Scale {
    /// `y = d unit k (level + from + by row)`: d belongs to the block or the row of weights, k is an integer of the
    /// sub-block, and row (0 or 1) is the row of the value table.
    Integer { grid: Grid, unit: f32, shift: Shift, from: f32, by: f32 },
    /// `y = d values[s] level`, where s is the sub-block's number in the field `scales`.
    Table { values: &'static [i8; 16] },
    /// `y = d k level - dmin m`, where k and m are integers of the sub-block below `top`.
    Affine { top: i32 },
    /// `y = d level`; the block is the sub-block.
    Float,
    /// `y = d level + m`; the block is the sub-block.
    FloatAffine,
}

/// The integers k that are allowed, and their form in the field `scales`.
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    pub lo: i32,
    pub hi: i32,
    pub step: i32,
    pub read: fn(u32) -> i32,
    pub stored: fn(i32) -> u32,
}

/// Which field chooses between the two rows of a value table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shift {
    Nowhere,
    /// In the field `shift`.
    Field,
    /// In the lowest bit of `scales`, beside what [`Grid`] stores.
    LowestBit,
}

/// A scale and an offset to choose, with the field values that encode them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Choice {
    pub a: f32,
    pub b: f32,
    pub stored: [u32; 2],
}

/// Where the fields are among the numbers of a block.
#[derive(Clone, Copy)]
pub(crate) struct Places {
    /// The floats of the block, where it has them: d, and dmin or m.
    pub d: Option<usize>,
    pub m: Option<usize>,
    /// The fields of sub-blocks that [`Choice::stored`] sets.
    pub first: usize,
    pub second: Option<usize>,
    pub codes: Run,
    /// The field beside the codes: signs or shifts of groups.
    pub beside: Run,
}

/// A field that has the same count of numbers for every sub-block.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Run {
    pub at: usize,
    /// How many numbers a sub-block has.
    pub n: usize,
}

impl Run {
    /// The numbers of sub-block `sub`.
    pub fn of(self, values: &mut [u32], sub: usize) -> &mut [u32] {
        &mut values[self.at + sub * self.n..][..self.n]
    }
}

/// Factors that are tried on a block's only scale, and offsets that are added to its minimum, as shares of the
/// scale.
const FACTORS: [f32; 5] = [1.0, 0.975, 1.025, 0.95, 1.05];
const AFFINE_FACTORS: [f32; 3] = [1.0, 0.97, 1.03];
const OFFSETS: [f32; 3] = [0.0, -0.25, 0.25];

impl Form {
    /// The places of the type's fields.
    pub fn places(self, layout: &Layout) -> Places {
        let at = |name: &str| layout.field(name).map(|(at, _)| at);
        let n_sub = layout.block_size / self.sub;
        let run = |name: &str| layout.field(name).map(|(at, f)| Run { at, n: f.count / n_sub });
        let is_shifted = matches!(self.scale, Scale::Integer { shift: Shift::Field, .. });
        let (first, second) = match self.scale {
            Scale::Integer { shift: Shift::Field, .. } => (at("scales"), at("shift")),
            Scale::Integer { .. } | Scale::Table { .. } => (at("scales"), None),
            Scale::Affine { .. } => (at("sc"), at("m")),
            Scale::Float => (at("d"), None),
            Scale::FloatAffine => (at("d"), at("m")),
        };
        let m = match self.scale {
            Scale::Affine { .. } => at("dmin"),
            Scale::FloatAffine => at("m"),
            _ => None,
        };
        Places {
            d: at("d"),
            m,
            first: first.unwrap_or_default(),
            second,
            codes: run("q").or_else(|| run("grid")).expect("all of these types have codes"),
            beside: run("signs").or_else(|| run("shift").filter(|_| !is_shifted)).unwrap_or_default(),
        }
    }

    /// How many choices there are for every sub-block.
    pub const fn n_choices(self) -> usize {
        match self.scale {
            Scale::Integer { shift: Shift::Nowhere, .. } | Scale::Table { .. } => 3,
            Scale::Integer { .. } => 6,
            Scale::Affine { .. } | Scale::FloatAffine => 9,
            Scale::Float => FACTORS.len(),
        }
    }

    /// Writes the choices for sub-block `sub` of a block whose numbers are `values`: its present scale first, then
    /// neighbouring ones, as many as `out` takes. `of_row` is the row's float scale, where it has one.
    pub fn choices(self, values: &[u32], places: Places, sub: usize, of_row: f32, out: &mut [Choice]) {
        let d = places.d.map_or(of_row, |at| float(values[at]));
        let (first, second) = (values[places.first + sub], places.second.map_or(0, |at| values[at + sub]));
        let mut n = 0;
        // false if there is no room for another one
        let mut put = |choice| {
            if let Some(out) = out.get_mut(n) {
                *out = choice;
            }
            n += 1;
            n < out.len()
        };
        match self.scale {
            Scale::Integer { grid, unit, shift, from, by } => {
                let (row, stored) = match shift {
                    Shift::Nowhere => (0, first),
                    Shift::Field => (second, first),
                    Shift::LowestBit => (first & 1, first & !1),
                };
                let rows: &[u32] = if shift == Shift::Nowhere { &[0] } else { &[row, 1 - row] };
                for &row in rows {
                    for change in [0, -grid.step, grid.step] {
                        let k = ((grid.read)(stored) + change).clamp(grid.lo, grid.hi);
                        let a = d * unit * k as f32;
                        let stored = match shift {
                            Shift::LowestBit => [(grid.stored)(k) | row, 0],
                            _ => [(grid.stored)(k), row],
                        };
                        if !put(Choice { a, b: a * (from + by * row as f32), stored }) {
                            return;
                        }
                    }
                }
            }
            Scale::Table { values } => {
                for change in [0, -1, 1] {
                    let at = (first as i32 + change).clamp(0, 15);
                    if !put(Choice { a: d * f32::from(values[at as usize]), b: 0.0, stored: [at as u32, 0] })
                    {
                        return;
                    }
                }
            }
            Scale::Affine { top } => {
                let dmin = places.m.map_or(0.0, |at| float(values[at]));
                for change in [0, -1, 1] {
                    let k = (first as i32 + change).clamp(0, top - 1);
                    for change in [0, -1, 1] {
                        let m = (second as i32 + change).clamp(0, top - 1);
                        let stored = [k as u32, m as u32];
                        if !put(Choice { a: d * k as f32, b: -(dmin * m as f32), stored }) {
                            return;
                        }
                    }
                }
            }
            Scale::Float => {
                for factor in FACTORS {
                    let bits = half(d * factor);
                    if !put(Choice { a: float(bits), b: 0.0, stored: [bits, 0] }) {
                        return;
                    }
                }
            }
            Scale::FloatAffine => {
                let m = float(second);
                for factor in AFFINE_FACTORS {
                    let d = half(d * factor);
                    for offset in OFFSETS {
                        let m = half(m + offset * float(d));
                        if !put(Choice { a: float(d), b: float(m), stored: [d, m] }) {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Whether codes mean the same numbers, but for a factor and an offset, with both choices, which are not the same.
    pub fn rescales(self, present: &Choice, other: &Choice) -> bool {
        // two tables that have nothing to do with each other
        let apart = matches!(self.scale, Scale::Integer { shift: Shift::Field, by: 0.0, .. });
        let is_like = !apart || present.stored[1] == other.stored[1];
        is_like && present.stored != other.stored && present.a != 0.0 && other.a != 0.0
    }

    /// Writes a choice into the fields of its sub-block.
    pub fn keep(self, values: &mut [u32], places: Places, sub: usize, choice: &Choice) {
        values[places.first + sub] = choice.stored[0];
        if let Some(at) = places.second {
            values[at + sub] = choice.stored[1];
        }
    }

    /// Multiplies the float scales and minima of a block by `factor`.
    pub fn scale_by(self, values: &mut [u32], places: Places, factor: f32) {
        for at in [places.d, places.m].into_iter().flatten() {
            values[at] = half(float(values[at]) * factor);
        }
    }
}

/// The f16 number that has these bits, as f32.
pub(crate) fn float(bits: u32) -> f32 {
    f16::from_bits(bits as u16).to_f32()
}

/// The bits of the nearest f16 number; numbers beyond the largest finite one become that.
pub(crate) fn half(x: f32) -> u32 {
    let most = f32::from(f16::MAX);
    u32::from(f16::from_f32(x.clamp(-most, most)).to_bits())
}
