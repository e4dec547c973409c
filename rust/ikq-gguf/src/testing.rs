//! Bytes of small GGUF files for tests, valid or with a fault in any place.

use crate::metadata::Kv;

/// A file under construction: metadata and tensor entries as raw bytes.
pub(crate) struct Raw {
    pub version: u32,
    pub n_tensors: u64,
    pub n_kv: u64,
    pub body: Vec<u8>,
    /// The tensor data behind the aligned header.
    pub data: Vec<u8>,
    pub alignment: usize,
}

impl Raw {
    pub(crate) fn new() -> Raw {
        Raw { version: 3, n_tensors: 0, n_kv: 0, body: Vec::new(), data: Vec::new(), alignment: 32 }
    }

    pub(crate) fn kv(self, kv: Kv) -> Raw {
        self.raw_kv(kv.raw())
    }

    pub(crate) fn raw_kv(mut self, bytes: &[u8]) -> Raw {
        self.n_kv += 1;
        self.body.extend_from_slice(bytes);
        self
    }

    pub(crate) fn tensor(mut self, name: &[u8], dims: &[u64], id: u32, offset: u64) -> Raw {
        self.n_tensors += 1;
        self.body.extend((name.len() as u64).to_le_bytes());
        self.body.extend_from_slice(name);
        self.body.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| self.body.extend(d.to_le_bytes()));
        self.body.extend(id.to_le_bytes());
        self.body.extend(offset.to_le_bytes());
        self
    }

    pub(crate) fn data(mut self, len: usize) -> Raw {
        self.data = (0..len).map(|i| i as u8).collect();
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.to_le_bytes());
        out.extend(self.n_kv.to_le_bytes());
        out.extend_from_slice(&self.body);
        if !self.data.is_empty() {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend_from_slice(&self.data);
        }
        out
    }
}
