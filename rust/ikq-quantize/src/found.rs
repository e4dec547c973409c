//! Finds out which units of the output an earlier run has left, by comparing hashes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ikq_gguf::{Model, partial_path};
use ikq_pool::{Cancel, Pool, Stop};
use ikq_simd::IsaKind;

use crate::error::Error;
use crate::hash;
use crate::journal::{Journal, Record};
use crate::plan::Plan;
use crate::recipe_hash::{self, same_form};
use crate::units::Units;
use crate::work::{Buffers, measure_again};

/// Hashes of the units' source and result, for those that are done.
#[derive(Clone)]
pub(crate) struct Found {
    pub records: Vec<Option<(u64, u64)>>,
    /// By shard: whether the file is whole under its final name already.
    pub in_place: Vec<bool>,
    /// How many units the journal lists whose bytes are not in the files.
    pub n_damaged: usize,
}

/// A tensor of a plan that another file has: its index, and the hashes of its units' source and result.
pub(crate) struct SameTensor {
    pub index: usize,
    pub hashes: Vec<(u64, u64)>,
}

/// The arguments that all searches for an earlier run's results share.
pub(crate) struct Look<'a> {
    pub plan: &'a Plan,
    pub model: &'a Model,
    pub units: &'a Units,
    pub targets: &'a [PathBuf],
    pub pool: &'a Pool,
    pub cancel: &'a Cancel,
}

/// Where the bytes of a shard's file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lies {
    Nowhere,
    Partial,
    /// Renamed already: the run ended while it put files in place.
    Final,
}

impl Look<'_> {
    /// Nothing.
    pub fn nothing(&self) -> Found {
        Found {
            records: vec![None; self.units.len()],
            in_place: vec![false; self.targets.len()],
            n_damaged: 0,
        }
    }

    /// Compares what the journal has with what the files have; erases what is not there. `done` is told of every
    /// unit that is. Where errors are wanted that a record does not have, they are measured.
    ///
    /// # Errors
    /// [`Error::Cancelled`]; those of the system.
    pub fn journal(
        &self,
        journal: &mut Journal,
        measured: Option<IsaKind>,
        mut done: impl FnMut(usize, Record),
    ) -> Result<Found, Error> {
        let mut found = self.nothing();
        if journal.is_new {
            return Ok(found);
        }
        let lies: Vec<Lies> = (0..self.targets.len()).map(|shard| self.lies(shard)).collect();
        let mut records = Vec::new();
        journal.read(|unit, record| records.push((unit, record)))?;
        let buffers = Buffers::default();
        let look_at_source = journal.stamp_differs;
        let good = Mutex::new(Vec::with_capacity(records.len()));
        let looked = self.pool.for_each(records.iter().copied(), self.cancel, |(number, record)| {
            let looked = self.unit(number, record, &lies, look_at_source, measured, &buffers);
            good.lock().unwrap_or_else(PoisonError::into_inner).push((number, looked?));
            Ok::<(), Error>(())
        });
        stopped(looked)?;
        let mut good = good.into_inner().unwrap_or_else(PoisonError::into_inner);
        good.sort_unstable_by_key(|(number, _)| *number);
        let mut n_there = vec![0; self.targets.len()];
        for (number, record) in &good {
            if record.is_some() {
                n_there[self.shard_of(*number)] += 1;
            }
        }
        // a file under its final name stays if it is all there, else it is done anew under another
        for (shard, lies) in lies.iter().enumerate() {
            let tensors = self.plan.layout.shards()[shard].tensors.clone();
            let n_units: usize = tensors.map(|t| self.units.of_tensor(t).len()).sum();
            found.in_place[shard] = *lies == Lies::Final && n_there[shard] == n_units;
        }
        for (number, record) in good {
            let shard = self.shard_of(number);
            match record.filter(|_| lies[shard] == Lies::Partial || found.in_place[shard]) {
                Some(record) => {
                    found.records[number] = Some((record.source, record.content));
                    done(number, record);
                    if measured.is_some() {
                        journal.put(number, &record)?;
                    }
                }
                None => {
                    found.n_damaged += 1;
                    journal.erase(number)?;
                }
            }
        }
        if look_at_source {
            journal.accept_stamp()?;
        }
        Ok(found)
    }

    fn shard_of(&self, number: usize) -> usize {
        self.plan.layout.places()[self.units.get(number).tensor].shard
    }

    fn lies(&self, shard: usize) -> Lies {
        let size = |path: &Path| std::fs::metadata(path).ok().map(|m| m.len());
        let planned = Some(self.plan.layout.shards()[shard].size);
        let target = &self.targets[shard];
        match size(&partial_path(target)) {
            partial if partial == planned => Lies::Partial,
            None if size(target) == planned => Lies::Final,
            _ => Lies::Nowhere,
        }
    }

    /// The record of a unit whose result is in its file (and whose source is the same, where that is asked).
    fn unit(
        &self,
        number: usize,
        mut record: Record,
        lies: &[Lies],
        look_at_source: bool,
        measured: Option<IsaKind>,
        buffers: &Buffers,
    ) -> Result<Option<Record>, Error> {
        let unit = self.units.get(number);
        let place = self.plan.layout.places()[unit.tensor];
        let path = match lies[place.shard] {
            Lies::Nowhere => return Ok(None),
            Lies::Partial => partial_path(&self.targets[place.shard]),
            Lies::Final => self.targets[place.shard].clone(),
        };
        let mut result = vec![0; unit.bytes_out];
        let read = File::open(&path).and_then(|f| f.read_exact_at(&mut result, place.offset + unit.offset));
        read.map_err(|e| ikq_gguf::Error::io(&path, "read", 0, e))?;
        if hash::of(&result) != record.content {
            return Ok(None);
        }
        let planned = &self.plan.tensors[unit.tensor];
        let t = &self.model.tensors()[planned.source];
        let source = t.read(unit.source.clone())?;
        if look_at_source && hash::of(&source) != record.source {
            return Ok(None);
        }
        if let (Some(isa), None) = (measured, record.errors) {
            record.errors = measure_again(&unit.work, &source, &result, (planned, t), isa, buffers)?;
        }
        source.release();
        Ok(Some(record))
    }

    /// Which tensors of `old` (a file or a split set of an earlier run) are those of this plan, bytes and all.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn same_tensors(
        &self,
        old: &Model,
        recipes: &[u64],
        wanted: impl Fn(usize) -> bool,
    ) -> Result<Vec<SameTensor>, Error> {
        let mut said = Vec::new();
        for shard in 0..old.shards().len() {
            said.extend(recipe_hash::read(old, shard));
        }
        let mut candidates = Vec::new();
        for (index, planned) in self.plan.tensors.iter().enumerate().filter(|(i, _)| wanted(*i)) {
            let name = recipe_hash::of_name(&planned.name);
            let entry = said.iter().find(|(of, _)| *of == name).map(|(_, hashes)| *hashes);
            let (Some(entry), Some(t)) = (entry, old.tensor(&planned.name)) else { continue };
            if entry.recipe == recipes[index] && same_form(planned, t.dims(), t.ty, t.data.len()) {
                candidates.push((index, entry, t));
            }
        }
        let numbers = |index: usize| self.units.of_tensor(index);
        let all = candidates.iter().flat_map(|(index, _, t)| numbers(*index).map(move |n| (n, *t)));
        let hashed = Mutex::new(Vec::new());
        let looked = self.pool.for_each(all, self.cancel, |(number, t)| {
            let unit = self.units.get(number);
            let of_plan = &self.model.tensors()[self.plan.tensors[unit.tensor].source];
            let source = of_plan.read(unit.source.clone())?;
            let start = unit.offset as usize;
            let content = t.data.slice(start..start + unit.bytes_out).expect("the sizes are equal");
            let hashes = (hash::of(&source), hash::of(&content));
            source.release();
            content.release();
            hashed.lock().unwrap_or_else(PoisonError::into_inner).push((number, hashes));
            Ok::<(), Error>(())
        });
        stopped(looked)?;
        let mut hashed = hashed.into_inner().unwrap_or_else(PoisonError::into_inner);
        hashed.sort_unstable_by_key(|(number, _)| *number);
        let mut same = Vec::new();
        for (index, entry, _) in candidates {
            let first = hashed.partition_point(|(n, _)| *n < numbers(index).start);
            let units: Vec<_> = hashed[first..first + numbers(index).len()].iter().map(|(_, h)| *h).collect();
            let source = hash::joined(units.iter().map(|h| h.0));
            let content = hash::joined(units.iter().map(|h| h.1));
            if (source, content) == (entry.source, entry.content) {
                same.push(SameTensor { index, hashes: units });
            }
        }
        Ok(same)
    }
}

/// Turns the end of a pool's loop into the error of this crate.
pub(crate) fn stopped(looked: Result<(), Stop<Error>>) -> Result<(), Error> {
    looked.map_err(|stop| match stop {
        Stop::Failed(e) => e,
        Stop::Cancelled => Error::Cancelled,
    })
}
