//! [`Journal`]: what is done of a partial output, unit by unit, so that a run can go on where another ended.
//!
//! ```text
//! header   magic | plan u64 | stamp u64 | n_units u64 | check u64 | zeros up to 96 bytes
//! records  one slot of 96 bytes per unit, zeros until the unit is in the output:
//!          source u64 | content u64 | seconds f32 | flags u32 | 6 x f64 of errors | 2 x u64 of what vanished | check u64
//! ```
//! A slot is written by the thread that did the unit, after the unit's bytes. Nothing depends on what the disk has
//! got first: a slot that is torn does not check, and one whose unit is not in the output after all is found out by
//! the hash of the content. So the process may be killed, and the power may fail, at any moment.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use ikq_gguf::beside;

use crate::error::Error;
use crate::hash::Hasher;
use crate::measure::Errors;
use crate::range::Vanished;

const MAGIC: &[u8; 8] = b"ikqjrnl3";
pub const SLOT: usize = 96;
/// Offset of the checksum in a slot.
const CHECK: usize = SLOT - 8;
/// Offset of the counts of vanished weights in a slot.
const VANISHED: usize = CHECK - 16;
/// How many slots are read at once.
const SLOTS_AT_ONCE: usize = 1 << 14;
/// Another command's work above this many seconds is not thrown away without being asked.
const MUCH_WORK_SECONDS: f64 = 600.0;

/// A unit that is in the output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Record {
    /// Hash of the source's bytes.
    pub source: u64,
    /// Hash of the result.
    pub content: u64,
    pub seconds: f32,
    /// Whether the type is ternary and the weights are not.
    pub not_ternary: bool,
    /// Counts of non-zero weights that became zero because the type's scales are too coarse.
    pub vanished: Vanished,
    pub errors: Option<Errors>,
}

/// What identifies the run that a journal is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunId {
    /// Hash of everything that decides the output's bytes.
    pub plan: u64,
    /// Hash of the source files' sizes and times: where it differs, their content may.
    pub stamp: u64,
    pub n_units: usize,
}

/// An open, locked journal file.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    path: PathBuf,
    id: RunId,
    /// Whether the source may have changed since the journal was begun.
    pub stamp_differs: bool,
    /// Whether this run has begun the journal.
    pub is_new: bool,
}

/// Where the journal of an output lies: `NAME.journal` beside it.
pub(crate) fn journal_path(target: &Path) -> PathBuf {
    beside(target, ".journal")
}

impl Journal {
    /// Opens the journal of `target`, or begins one: if there is none, if it is of another plan, and with `restart`.
    ///
    /// # Errors
    /// [`Error::Busy`] when another process has it, [`Error::OtherWork`] when a journal of another plan has much
    /// work behind it, [`Error::Gguf`] for the system's refusals.
    pub fn open(target: &Path, id: RunId, restart: bool) -> Result<Journal, Error> {
        let path = journal_path(target);
        let os = |source| ikq_gguf::Error::Io { path: path.clone(), action: "write", source };
        let file = loop {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(os)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(Error::Busy { path: target.to_path_buf() }),
                // no locks there: nothing stands against going on
                Err(TryLockError::Error(_)) => {}
            }
            // one that was removed by its owner after it was opened here is not the one to write
            let there = std::fs::metadata(&path).map(|m| (m.dev(), m.ino()));
            let here = file.metadata().map(|m| (m.dev(), m.ino()));
            if there.ok() == here.ok() {
                break file;
            }
        };
        let found = read_header(&file);
        if let Some(found) = found
            && found.plan != id.plan
            && !restart
        {
            let seconds = work_in(&file, found);
            if seconds > MUCH_WORK_SECONDS {
                return Err(Error::OtherWork { path: target.to_path_buf(), minutes: seconds / 60.0 });
            }
        }
        let goes_on = !restart && found.is_some_and(|f| (f.plan, f.n_units) == (id.plan, id.n_units));
        let stamp_differs = goes_on && found.is_some_and(|f| f.stamp != id.stamp);
        let journal = Journal { file, path, id, stamp_differs, is_new: !goes_on };
        if !goes_on {
            journal.begin()?;
        }
        Ok(journal)
    }

    fn begin(&self) -> Result<(), Error> {
        let size = (SLOT * (1 + self.id.n_units)) as u64;
        let os = |e| ikq_gguf::Error::io(&self.path, "write", size, e);
        self.file.set_len(0).map_err(os)?;
        ikq_gguf::reserve(&self.file, size).map_err(os)?;
        self.write_header()
    }

    fn write_header(&self) -> Result<(), Error> {
        self.write(0, &header(self.id))
    }

    fn write(&self, slot: usize, bytes: &[u8; SLOT]) -> Result<(), Error> {
        let at = (slot * SLOT) as u64;
        let written = self.file.write_all_at(bytes, at);
        Ok(written.map_err(|e| ikq_gguf::Error::io(&self.path, "write", SLOT as u64, e))?)
    }

    /// Reads all records: `found(unit, record)` for each that is whole.
    ///
    /// # Errors
    /// That of the system.
    pub fn read(&self, mut found: impl FnMut(usize, Record)) -> Result<(), Error> {
        let os = |e| ikq_gguf::Error::io(&self.path, "read", 0, e);
        each_slot(&self.file, self.id, &mut found).map_err(os)?;
        Ok(())
    }

    /// Says that the source is what it was when the records were made, or that those who are not are gone.
    ///
    /// # Errors
    /// That of the system.
    pub fn accept_stamp(&mut self) -> Result<(), Error> {
        self.stamp_differs = false;
        self.write_header()
    }

    /// Records that a unit is in the output. From any thread.
    ///
    /// # Errors
    /// That of the system.
    pub fn put(&self, unit: usize, record: &Record) -> Result<(), Error> {
        self.write(1 + unit, &slot(self.id, unit, record))
    }

    /// Erases the record of a unit.
    ///
    /// # Errors
    /// That of the system.
    pub fn erase(&self, unit: usize) -> Result<(), Error> {
        self.write(1 + unit, &[0; SLOT])
    }

    /// Waits until the disk has all records.
    ///
    /// # Errors
    /// That of the system.
    pub fn sync(&self) -> Result<(), Error> {
        let synced = self.file.sync_data();
        Ok(synced.map_err(|e| ikq_gguf::Error::io(&self.path, "write", 0, e))?)
    }

    /// Removes the journal's file, because the output is whole or was given up.
    pub fn remove(self) {
        // what is left of it is found to be of no use by the next run
        let _ = std::fs::remove_file(&self.path);
    }
}

fn header(id: RunId) -> [u8; SLOT] {
    let mut out = [0; SLOT];
    out[..8].copy_from_slice(MAGIC);
    let fields = [id.plan, id.stamp, id.n_units as u64];
    let mut hasher = Hasher::new("journal");
    for (field, out) in fields.iter().zip(out[8..32].chunks_exact_mut(8)) {
        out.copy_from_slice(&field.to_le_bytes());
        hasher.number(*field);
    }
    out[32..40].copy_from_slice(&hasher.end().to_le_bytes());
    out
}

fn read_header(file: &File) -> Option<RunId> {
    let mut bytes = [0; SLOT];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let field = |i: usize| bytes[8 * i..].first_chunk().map(|b| u64::from_le_bytes(*b));
    let id = RunId { plan: field(1)?, stamp: field(2)?, n_units: usize::try_from(field(3)?).ok()? };
    (bytes == header(id)).then_some(id)
}

/// A record as it is kept, and as it travels.
pub(crate) fn slot(id: RunId, unit: usize, record: &Record) -> [u8; SLOT] {
    let mut out = [0; SLOT];
    let flags = u32::from(record.not_ternary) | u32::from(record.errors.is_some()) << 1;
    out[..8].copy_from_slice(&record.source.to_le_bytes());
    out[8..16].copy_from_slice(&record.content.to_le_bytes());
    out[16..20].copy_from_slice(&record.seconds.to_le_bytes());
    out[20..24].copy_from_slice(&flags.to_le_bytes());
    let errors = record.errors.unwrap_or_default().to_array();
    for (x, out) in errors.iter().zip(out[24..VANISHED].chunks_exact_mut(8)) {
        out.copy_from_slice(&x.to_le_bytes());
    }
    out[VANISHED..VANISHED + 8].copy_from_slice(&record.vanished.n.to_le_bytes());
    out[VANISHED + 8..CHECK].copy_from_slice(&record.vanished.of.to_le_bytes());
    let check = check(id, unit, &out);
    out[CHECK..].copy_from_slice(&check.to_le_bytes());
    out
}

/// The checksum of a slot, which also depends on the slot's number and the plan. It is never 0, so that an empty slot is not
/// taken for a record.
fn check(id: RunId, unit: usize, slot: &[u8; SLOT]) -> u64 {
    let mut hasher = Hasher::new("slot");
    hasher.number(id.plan);
    hasher.number(unit as u64);
    hasher.bytes(&slot[..CHECK]);
    hasher.end().max(1)
}

/// What [`slot`] made of a record, of this run and unit.
pub(crate) fn parse(id: RunId, unit: usize, bytes: &[u8; SLOT]) -> Option<Record> {
    let number = |at: usize| bytes[at..].first_chunk().map(|b| u64::from_le_bytes(*b));
    if number(CHECK)? != check(id, unit, bytes) {
        return None;
    }
    let half = |at: usize| bytes[at..].first_chunk().map(|b| u32::from_le_bytes(*b));
    let flags = half(20)?;
    let mut errors = [0.0; 6];
    for (i, x) in errors.iter_mut().enumerate() {
        *x = f64::from_bits(number(24 + 8 * i)?);
    }
    Some(Record {
        source: number(0)?,
        content: number(8)?,
        seconds: f32::from_bits(half(16)?),
        not_ternary: flags & 1 != 0,
        vanished: Vanished { n: number(VANISHED)?, of: number(VANISHED + 8)? },
        errors: (flags & 2 != 0).then(|| Errors::from_array(errors)),
    })
}

/// Reads all records that are whole. A file that was cut short has no records behind its end.
fn each_slot(file: &File, id: RunId, mut found: impl FnMut(usize, Record)) -> io::Result<()> {
    let mut bytes = vec![0; SLOT * SLOTS_AT_ONCE.min(id.n_units.max(1))];
    let mut unit = 0;
    while unit < id.n_units {
        let n = (id.n_units - unit).min(SLOTS_AT_ONCE);
        let part = &mut bytes[..SLOT * n];
        match file.read_exact_at(part, (SLOT * (1 + unit)) as u64) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(e),
        }
        for (i, slot) in part.as_chunks().0.iter().enumerate() {
            if let Some(record) = parse(id, unit + i, slot) {
                found(unit + i, record);
            }
        }
        unit += n;
    }
    Ok(())
}

/// The seconds of work that the records of a journal took.
fn work_in(file: &File, id: RunId) -> f64 {
    // no more slots than the file has bytes for
    let n_slots = file.metadata().map_or(0, |m| m.len() as usize / SLOT).saturating_sub(1);
    let id = RunId { n_units: id.n_units.min(n_slots), ..id };
    let mut seconds = 0.0;
    let _ = each_slot(file, id, |_, record| seconds += f64::from(record.seconds.max(0.0)));
    seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: RunId = RunId { plan: 7, stamp: 8, n_units: 40_000 };

    fn record(i: u64) -> Record {
        let errors = Errors::from_array([1.0, 2.0, 3.0, 4.0, i as f64, 5.0]);
        Record {
            source: i,
            content: !i,
            seconds: 0.5,
            not_ternary: i == 3,
            vanished: Vanished { n: i, of: 1000 },
            errors: (i != 4).then_some(errors),
        }
    }

    fn found(journal: &Journal) -> Vec<(usize, Record)> {
        let mut all = Vec::new();
        journal.read(|unit, record| all.push((unit, record))).expect("readable");
        all
    }

    /// A target in a directory of its own.
    fn target(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("ikq-journal-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("made");
        dir.join("m.gguf")
    }

    fn clean(target: &Path) {
        std::fs::remove_dir_all(target.parent().expect("its directory")).expect("removed");
    }

    #[test]
    fn records_are_found_again_but_not_torn_or_foreign_ones() {
        let target = target("records");
        let journal = Journal::open(&target, ID, false).expect("begun");
        assert!(journal.is_new);
        assert!(matches!(Journal::open(&target, ID, false), Err(Error::Busy { .. })));
        for i in [0, 3, 4, 20_000, 39_999] {
            journal.put(i as usize, &record(i)).expect("written");
        }
        journal.erase(0).expect("written");
        drop(journal);
        let path = journal_path(&target);
        let whole = std::fs::read(&path).expect("there");

        let again = Journal::open(&target, RunId { stamp: 9, ..ID }, false).expect("opened");
        assert!(!again.is_new && again.stamp_differs);
        let expected: Vec<_> = [3, 4, 20_000, 39_999].iter().map(|i| (*i as usize, record(*i))).collect();
        assert_eq!(found(&again), expected);
        drop(again);

        // every single bit of a record counts
        for bit in 0..8 * SLOT {
            let mut bytes = whole.clone();
            bytes[SLOT * 4 + bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, bytes).expect("written");
            let journal = Journal::open(&target, ID, false).expect("opened");
            assert_eq!(found(&journal).len(), 3, "bit {bit}");
        }
        // a record in another place is none
        let mut bytes = whole.clone();
        bytes.copy_within(SLOT * 4..SLOT * 5, SLOT * 9);
        std::fs::write(&path, bytes).expect("written");
        assert_eq!(found(&Journal::open(&target, ID, false).expect("opened")).len(), 4);
        // cut short, zeros, another plan, another program's file
        std::fs::write(&path, &whole[..SLOT * 21_000]).expect("written");
        assert_eq!(found(&Journal::open(&target, ID, false).expect("opened")).len(), 2);
        for foreign in [vec![0; whole.len()], b"GGUF".to_vec(), Vec::new()] {
            std::fs::write(&path, foreign).expect("written");
            let journal = Journal::open(&target, ID, false).expect("opened");
            assert!(journal.is_new && found(&journal).is_empty());
        }
        std::fs::write(&path, &whole).expect("written");
        let other = Journal::open(&target, RunId { plan: 1, ..ID }, false).expect("opened");
        assert!(other.is_new && found(&other).is_empty());
        other.remove();
        assert!(!path.exists());
        clean(&target);
    }

    #[test]
    fn much_work_of_another_command_is_not_thrown_away() {
        let target = target("work");
        let journal = Journal::open(&target, ID, false).expect("begun");
        let long = Record { seconds: 400.0, ..record(1) };
        journal.put(1, &long).expect("written");
        drop(journal);
        let other = RunId { plan: 9, ..ID };
        drop(Journal::open(&target, other, false).expect("400 seconds are not much"));
        let journal = Journal::open(&target, ID, false).expect("begun");
        (1..3).for_each(|i| journal.put(i, &long).expect("written"));
        drop(journal);
        let refused = Journal::open(&target, other, false);
        assert!(matches!(refused, Err(Error::OtherWork { minutes, .. }) if minutes > 13.0));
        assert_eq!(found(&Journal::open(&target, ID, false).expect("still there")).len(), 2);
        assert!(Journal::open(&target, other, true).expect("asked for").is_new);
        clean(&target);
    }
}
