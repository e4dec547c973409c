//! The beginning of a run: what is there of its output already, from an interrupted run, an older output or finished
//! shards, and the open files.

use std::path::Path;

use ikq_gguf::{Model, Tensor, Writer};
use ikq_simd::IsaKind;

use crate::error::Error;
use crate::found::{Found, Look, SameTensor};
use crate::journal::Journal;
use crate::recipe_hash;
use crate::run::RunOptions;
use crate::tally::{Event, Tally};

/// A run whose files are open, with what was there already.
pub(crate) struct Begun<'a> {
    pub writer: Writer,
    pub found: Found,
    /// By tensor: what an older output has of it.
    pub reused: Vec<Option<Reused>>,
    pub tally: Tally<'a>,
    pub n_resumed: usize,
}

/// Looks for what is there of the output, and opens its files.
pub(crate) fn begin<'a>(
    look: &Look<'a>,
    recipes: &[u64],
    target: &Path,
    journal: &mut Journal,
    isa: IsaKind,
    options: &RunOptions,
    progress: &mut impl FnMut(Event),
) -> Result<Begun<'a>, Error> {
    let (plan, units) = (look.plan, look.units);
    let mut resumed = Vec::new();
    let measured = options.measure_errors.then_some(isa);
    let mut found = look.journal(journal, measured, |number, record| resumed.push((number, record)))?;
    let n_resumed = resumed.len();
    if n_resumed + found.n_damaged > 0 {
        let damaged = match found.n_damaged {
            0 => String::new(),
            n => format!("; {n} that were noted as done are not in the file and are done again"),
        };
        progress(Event::Note(format!("going on: {n_resumed} of {} items are done{damaged}", units.len())));
    }
    let (mut kept, mut older) = (Vec::new(), Vec::new());
    if options.keep_finished {
        (kept, older) = keep_finished(look, recipes, &mut found, progress)?;
    }
    older_tensors(look, options, recipes, &found, &mut older, progress)?;
    let mut reused: Vec<Option<Reused>> = (0..plan.tensors.len()).map(|_| None).collect();
    for r in older {
        let index = r.index;
        reused[index] = Some(r);
    }
    let origin = |index: usize| reused[index].is_some() || kept.binary_search(&index).is_ok();
    let mut tally = Tally::new(plan, units, origin);
    for (number, record) in &resumed {
        progress(Event::Bytes(tally.add(*number, record)));
    }
    for index in &kept {
        tally.add_whole(*index);
        progress(Event::Bytes(plan.tensors[*index].bytes_in));
    }
    let writer = Writer::resume(target, plan.layout.clone(), &found.in_place)?;
    for number in (0..units.len()).filter(|n| found.records[*n].is_some()) {
        let unit = units.get(number);
        writer.mark(unit.tensor, unit.offset, unit.bytes_out as u64)?;
    }
    Ok(Begun { writer, found, reused, tally, n_resumed })
}

/// A tensor that an older output gives, with the hashes of its units.
pub(crate) struct Reused {
    pub index: usize,
    pub old: Tensor,
    pub hashes: Vec<(u64, u64)>,
}

/// Adds to `all` what older outputs have of the tensors that are not in it yet.
fn older_tensors(
    look: &Look<'_>,
    options: &RunOptions,
    recipes: &[u64],
    found: &Found,
    all: &mut Vec<Reused>,
    progress: &mut impl FnMut(Event),
) -> Result<(), Error> {
    let mut olds = Vec::new();
    for path in &options.reuse {
        let old = Model::open(path)?;
        if (0..old.shards().len()).all(|shard| recipe_hash::read(&old, shard).is_empty()) {
            return Err(Error::NoHashes { path: path.clone() });
        }
        olds.push(old);
    }
    if options.keep_finished {
        // of shards that do not stay whole, single tensors may serve
        let shards = look.targets.iter().zip(&found.in_place).filter(|(_, in_place)| !**in_place);
        olds.extend(shards.filter_map(|(path, _)| Model::open_file(path).ok()));
    }
    for old in &olds {
        let wanted = |index: usize| {
            let undone = look.units.of_tensor(index).any(|n| found.records[n].is_none());
            let in_place = found.in_place[look.plan.layout.places()[index].shard];
            undone && !in_place && all.iter().all(|r| r.index != index)
        };
        let wanted: Vec<bool> = (0..look.plan.tensors.len()).map(wanted).collect();
        let same = look.same_tensors(old, recipes, |i| wanted[i])?;
        all.extend(reusable(look, old, same));
    }
    if !olds.is_empty() {
        let n = all.iter().filter(|r| look.plan.tensors[r.index].encode.is_some()).count();
        let of = look.plan.tensors.iter().filter(|t| t.encode.is_some()).count();
        progress(Event::Note(format!("reusing {n} of the {of} tensors that would be encoded")));
    }
    Ok(())
}

fn reusable(look: &Look<'_>, old: &Model, same: Vec<SameTensor>) -> impl Iterator<Item = Reused> {
    same.into_iter().filter_map(|SameTensor { index, hashes }| {
        let old = old.tensor(&look.plan.tensors[index].name)?.clone();
        Some(Reused { index, old, hashes })
    })
}

/// Shards under their final names that are what this run would write: they stay. The tensors in them, and what serves of
/// shards that do not stay.
fn keep_finished(
    look: &Look<'_>,
    recipes: &[u64],
    found: &mut Found,
    progress: &mut impl FnMut(Event),
) -> Result<(Vec<usize>, Vec<Reused>), Error> {
    let (mut kept, mut serves) = (Vec::new(), Vec::new());
    for (shard, path) in look.targets.iter().enumerate().filter(|(_, path)| path.exists()) {
        let planned = &look.plan.layout.shards()[shard];
        if found.in_place[shard] {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let model = match Model::open_file(path) {
            Ok(model) => model,
            Err(e) => {
                progress(Event::Note(format!("{name} is done again: {e}")));
                continue;
            }
        };
        let is_alike = model.total_size() == planned.size && same_header(&model, planned);
        let tensors = planned.tensors.clone();
        let same = match is_alike {
            true => look.same_tensors(&model, recipes, |i| tensors.contains(&i))?,
            false => Vec::new(),
        };
        let n_same = same.len();
        found.in_place[shard] = is_alike && n_same == tensors.len();
        progress(Event::Note(match (found.in_place[shard], is_alike) {
            (true, _) => format!("{name} stays: it is what this command writes"),
            (false, true) => format!(
                "{name} is done again: {} of its {} tensors are not what this command writes",
                tensors.len() - n_same,
                tensors.len()
            ),
            (false, false) => format!("{name} is done again: it has other tensors, types or metadata"),
        }));
        match found.in_place[shard] {
            true => kept.extend(tensors),
            false => serves.extend(reusable(look, &model, same)),
        }
    }
    Ok((kept, serves))
}

/// Whether a file begins with the planned header, but for the numbers that come with the data.
fn same_header(model: &Model, planned: &ikq_gguf::ShardLayout) -> bool {
    let Some(found) = model.shards()[0].file.get(..planned.header.len()) else { return false };
    let numbers = planned
        .per_tensor
        .map_or(0..0, |start| start..start + 8 * recipe_hash::room().n_numbers * planned.tensors.len());
    found[..numbers.start] == planned.header[..numbers.start]
        && found[numbers.end..] == planned.header[numbers.end..]
}
