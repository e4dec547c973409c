//! Sequences in files: what a model has read, to go on from later.
//!
//! ```text
//! "ikq-seq1"   u32 length of the header   header (JSON)   tokens (u32 each)
//! pages: group after group, page after page, layer after layer     states: snapshot after snapshot, layer after layer
//! u64 xxh3 of everything before
//! ```
//! A file belongs to one model (by the hash of its tensors) and one form of the cache. Nothing in it is believed
//! before its checksum and all lengths are right.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::batch::{NO_PAGE, PAGE};
use crate::error::Error;
use crate::model::{Model, Runner, Shared};
use crate::sequence::Sequence;

const MAGIC: &[u8; 8] = b"ikq-seq1";
/// Longest header that is read: a position in a page table takes two bytes of it.
const LONGEST_HEADER: usize = 64 << 20;

#[derive(Serialize, Deserialize)]
struct Header {
    /// The model's hash, as text: JSON numbers are not exact.
    model: String,
    cache: String,
    n_past: usize,
    /// Per group: bytes of a page, and whether each page is there.
    groups: Vec<(usize, Vec<bool>)>,
    /// Position of every state: snapshots, then the one at `n_past`; with its bytes per layer.
    states: Vec<(usize, Vec<usize>)>,
    /// The sequence's field of that name; 0 where there is none.
    #[serde(default)]
    shifted_at: usize,
    /// Hashes and scales of the adapters that it was computed with.
    #[serde(default)]
    adapters: String,
}

impl Sequence {
    /// Writes the sequence to a file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Closed`].
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let bytes = self.to_bytes()?;
        let io = |source| Error::Io { path: path.display().to_string(), source };
        let mut partial = path.as_os_str().to_owned();
        partial.push(format!(".{}.partial", std::process::id()));
        let partial = std::path::PathBuf::from(partial);
        let written = File::create(&partial)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(&partial, path));
        written.map_err(|e| {
            // what was begun is of no use; the target is as it was
            let _ = std::fs::remove_file(&partial);
            io(e)
        })
    }

    /// What [`Sequence::save`] writes.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let shared = &self.shared;
        let runner = shared.runner()?;
        let groups = self.tables.iter().zip(&shared.sizes.pages);
        let mut payload = Vec::new();
        self.tokens.iter().for_each(|t| payload.extend(t.to_le_bytes()));
        for (table, group) in self.tables.iter().zip(&shared.groups) {
            for page in table.iter().filter(|p| **p != NO_PAGE) {
                for layer in &group.layers {
                    runner.devices[shared.attention[*layer]].export_page(*layer, *page, &mut payload);
                }
            }
        }
        let mut states = Vec::new();
        let now = self.state.map(|state| (self.n_past(), state));
        for (n_past, state) in self.snapshots.iter().chain(now) {
            let mut lengths = Vec::new();
            for layer in recurrent(shared) {
                let before = payload.len();
                runner.devices[shared.attention[layer]].export_state(layer, state, &mut payload);
                lengths.push(payload.len() - before);
            }
            states.push((n_past, lengths));
        }
        let header = Header {
            model: format!("{:016x}", shared.hash),
            cache: form(&runner),
            n_past: self.n_past(),
            groups: groups.map(|(t, size)| (*size, t.iter().map(|p| *p != NO_PAGE).collect())).collect(),
            states,
            shifted_at: self.shifted_at,
            adapters: shared.applied(&self.scales),
        };
        let header = serde_json::to_vec(&header).expect("plain numbers and texts");
        let mut bytes = MAGIC.to_vec();
        bytes.extend((header.len() as u32).to_le_bytes());
        bytes.extend(header);
        bytes.append(&mut payload);
        let hash = xxh3_64(&bytes);
        bytes.extend(hash.to_le_bytes());
        Ok(bytes)
    }
}

impl Model {
    /// The sequence that [`Sequence::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Saved`] for a file that is damaged or belongs to another model or form of the cache;
    /// [`Error::CacheMemory`], [`Error::Closed`].
    pub fn load_sequence(&self, path: &Path) -> Result<Sequence, Error> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: name.clone(), source })?;
        self.sequence_from_bytes(&name, &bytes)
    }

    /// The sequence that [`Sequence::to_bytes`] made; `name` is for errors.
    ///
    /// # Errors
    /// As [`Model::load_sequence`].
    pub fn sequence_from_bytes(&self, name: &str, bytes: &[u8]) -> Result<Sequence, Error> {
        let saved = |why: String| Error::Saved { path: name.to_string(), why };
        let (header, mut rest) = read(bytes).map_err(saved)?;
        let shared = &self.shared;
        let mut runner = shared.runner()?;
        fits(&header, shared, &runner, rest.len()).map_err(saved)?;
        let mut take = |n: usize| {
            let (part, behind) = rest.split_at(n);
            rest = behind;
            part
        };
        let tokens = take(4 * header.n_past).chunks_exact(4);
        let tokens: Vec<u32> = tokens.map(|t| u32::from_le_bytes([t[0], t[1], t[2], t[3]])).collect();
        if let Some(token) = tokens.iter().find(|t| **t as usize >= shared.n_vocab) {
            return Err(saved(format!("token {token} is not in the vocabulary")));
        }
        // from here on pages belong to the sequence, which gives them back on an error
        let mut sequence = Sequence::new(Arc::clone(shared));
        for (group, (_, there)) in header.groups.iter().enumerate() {
            for there in there {
                let page = if *there { runner.take_page(shared, group)? } else { NO_PAGE };
                sequence.tables[group].push(page);
                if *there {
                    for layer in &shared.groups[group].layers {
                        let device = &mut runner.devices[shared.attention[*layer]];
                        let n = device.layer_page_bytes(*layer);
                        device.import_page(*layer, page, take(n));
                    }
                }
            }
        }
        for (i, (n_past, lengths)) in header.states.iter().enumerate() {
            let state = runner.take_state(shared)?;
            let is_last = i + 1 == header.states.len();
            match is_last {
                true => sequence.state = Some(state),
                false => {
                    if let Some(dropped) = sequence.snapshots.add(*n_past, state) {
                        shared.pools().states.give_back(dropped);
                    }
                }
            }
            runner.devices.iter_mut().for_each(|d| d.clear_state(state));
            for (layer, n) in recurrent(shared).zip(lengths) {
                let device = &mut runner.devices[shared.attention[layer]];
                device.import_state(layer, state, *n_past, take(*n)).map_err(saved)?;
            }
        }
        sequence.tokens = tokens;
        sequence.shifted_at = header.shifted_at;
        Ok(sequence)
    }
}

/// Layers that have a state.
fn recurrent(shared: &Shared) -> impl Iterator<Item = usize> + '_ {
    shared.recurrent.iter().copied()
}

fn form(runner: &Runner) -> String {
    let mut forms: Vec<String> = runner.devices.iter().map(|d| d.cache_form()).collect();
    forms.retain(|form| !form.is_empty());
    forms.dedup();
    forms.join(" and ")
}

/// The header and what follows it, of bytes whose checksum is right.
fn read(bytes: &[u8]) -> Result<(Header, &[u8]), String> {
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        return Err("it does not begin as such files do".into());
    };
    let cut = || "it is cut off".to_string();
    let (body, hash) = bytes.split_last_chunk::<8>().ok_or_else(cut)?;
    if body.len() < MAGIC.len() + 4 {
        return Err(cut());
    }
    if xxh3_64(body) != u64::from_le_bytes(*hash) {
        return Err("its checksum is wrong: it is damaged or cut off".into());
    }
    let rest = &rest[..rest.len() - 8];
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > rest.len().min(LONGEST_HEADER) {
        return Err(format!("a header of {length} bytes"));
    }
    let (header, rest) = rest.split_at(length);
    let header = serde_json::from_slice(header).map_err(|e| format!("its header: {e}"))?;
    Ok((header, rest))
}

/// Whether a header describes a sequence of this model, with `n_bytes` behind it.
fn fits(header: &Header, shared: &Shared, runner: &Runner, n_bytes: usize) -> Result<(), String> {
    let hash = format!("{:016x}", shared.hash);
    if header.model != hash {
        return Err(format!("it is of the model {}, not of {hash}", header.model));
    }
    let adapters = shared.applied(&shared.scales());
    if header.adapters != adapters {
        let name = |text: &str| if text.is_empty() { "none".to_string() } else { text.to_string() };
        let (theirs, own) = (name(&header.adapters), name(&adapters));
        return Err(format!("its LoRA adapters (hash*scale) are {theirs}, the model's are {own}"));
    }
    let cache = form(runner);
    if header.cache != cache {
        return Err(format!("its cache is of the form {}, the model's of {cache}", header.cache));
    }
    if header.n_past > shared.n_ctx {
        return Err(format!("it has {} positions, the context {}", header.n_past, shared.n_ctx));
    }
    if header.shifted_at > header.n_past {
        return Err(format!("a shift at {} of {} positions", header.shifted_at, header.n_past));
    }
    let n_pages = header.n_past.div_ceil(PAGE);
    if header.groups.len() != shared.groups.len() {
        return Err(format!("{} groups of layers instead of {}", header.groups.len(), shared.groups.len()));
    }
    let mut expected = 4 * header.n_past;
    for (((size, there), own), group) in header.groups.iter().zip(&shared.sizes.pages).zip(&shared.groups) {
        // what the next token sees must be there
        let first = (header.n_past + 1).saturating_sub(group.window.unwrap_or(usize::MAX)) / PAGE;
        if size != own || there.len() != n_pages || !there.iter().skip(first).all(|t| *t) {
            return Err(format!("{} pages of {size} bytes instead of {n_pages} of {own}", there.len()));
        }
        expected += there.iter().filter(|t| **t).count() * size;
    }
    let n_recurrent = recurrent(shared).count();
    let ascending = header.states.windows(2).all(|w| w[0].0 < w[1].0 || w[0].0 == header.n_past);
    let last = header.states.last().map(|s| s.0);
    let needed = (n_recurrent > 0 && header.n_past > 0).then_some(header.n_past);
    if !ascending || (last != needed && !(n_recurrent > 0 && header.n_past == 0 && last == Some(0))) {
        return Err(format!("states at {last:?} for {} positions", header.n_past));
    }
    for (n_past, lengths) in &header.states {
        if lengths.len() != n_recurrent {
            return Err(format!("a state of {} layers instead of {n_recurrent}", lengths.len()));
        }
        let sum = lengths.iter().try_fold(0usize, |sum, n| sum.checked_add(*n));
        let sum =
            sum.filter(|sum| *sum <= n_bytes).ok_or(format!("a state at {n_past} of too many bytes"))?;
        expected += sum;
    }
    match expected == n_bytes {
        true => Ok(()),
        false => Err(format!("{n_bytes} bytes of pages and states instead of {expected}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, payload: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend((header.len() as u32).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(payload);
        let hash = xxh3_64(&bytes);
        bytes.extend(hash.to_le_bytes());
        bytes
    }

    const HEADER: &str = r#"{"model": "0", "cache": "f16, f16", "n_past": 2, "groups": [], "states": []}"#;

    #[test]
    fn a_header_and_what_follows_it() {
        let bytes = file(HEADER, &[1, 2, 3]);
        let (header, rest) = read(&bytes).expect("whole");
        assert_eq!((header.n_past, rest), (2, &[1u8, 2, 3][..]));
    }

    #[test]
    fn damage_is_found_wherever_it_is() {
        let bytes = file(HEADER, &[1, 2, 3]);
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert!(read(&other).is_err(), "byte {at}");
            assert!(read(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_right_checksum_is_not_enough() {
        for header in ["", "{}", "[1]", r#"{"model": 1}"#, &HEADER.replace('2', "-2")] {
            assert!(read(&file(header, &[])).is_err(), "{header}");
        }
        let mut long = file(HEADER, &[]);
        long.truncate(long.len() - 8);
        long[MAGIC.len()..MAGIC.len() + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        let hash = xxh3_64(&long);
        long.extend(hash.to_le_bytes());
        assert!(read(&long).is_err_and(|why| why.contains("header")));
    }
}
