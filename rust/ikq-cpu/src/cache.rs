//! What a layer remembers of tokens: pages of keys and values, or states.

use ikq_kernels::attention::{At, CacheType, PageShape, Pages, Turn};
use ikq_kernels::delta;
use ikq_model::device::Move;
use ikq_model::error::Error;
use ikq_model::network::{Attention, Layer, RopeTable};
use ikq_simd::IsaKind;

use crate::rope::pairing;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheForm {
    pub keys: CacheType,
    pub values: CacheType,
    /// Rotate rows of few bits before they are stored.
    pub rotate: bool,
}

/// Types of this many bits per element and less gain from rotation.
const ROTATED_BITS: f64 = 7.0;

impl CacheForm {
    /// Whether rows of this type are rotated.
    pub fn rotates(&self, ty: CacheType) -> bool {
        let bits = ty.row_bytes(32).map_or(16.0, |bytes| 8.0 * bytes as f64 / 32.0);
        self.rotate && bits <= ROTATED_BITS
    }

    fn shape(&self, shape: PageShape) -> PageShape {
        if self.rotates(shape.ty()) { shape.rotated() } else { shape }
    }
}

/// The memory of a layer.
pub enum LayerCache {
    KeysValues(Pages, Pages),
    /// MLA: the compressed vector is key and value.
    Latent(Pages),
    /// The states of a recurrent layer, by number.
    Recurrent(delta::Shape, Vec<delta::State>),
}

impl LayerCache {
    /// The memory of no tokens.
    ///
    /// # Errors
    /// [`Error::Cache`] when a head does not fit the cache's type.
    pub fn new(layer: &Layer, form: CacheForm) -> Result<LayerCache, Error> {
        let wrong = |ty: CacheType| {
            let name = ty.name().to_string();
            move |e: ikq_kernels::attention::CacheError| Error::Cache { name, why: e.to_string() }
        };
        Ok(match &layer.attention {
            Attention::Gqa(a) => {
                let keys = PageShape::keys(form.keys, a.n_head_kv, a.head_dim).map_err(wrong(form.keys))?;
                let values = PageShape::values(form.values, a.n_head_kv, a.head_dim_v);
                let values = values.map_err(wrong(form.values))?;
                LayerCache::KeysValues(Pages::new(form.shape(keys)), Pages::new(form.shape(values)))
            }
            Attention::Mla(a) => {
                let shape =
                    PageShape::latent(form.keys, a.kv_rank, a.rope.n_rot).map_err(wrong(form.keys))?;
                LayerCache::Latent(Pages::new(form.shape(shape)))
            }
            Attention::DeltaNet(a) => {
                let shape = delta::Shape {
                    n_head: a.n_head_v,
                    dk: a.head_dim_k,
                    dv: a.head_dim_v,
                    n_channels: a.n_channels(),
                    conv_kernel: a.conv_kernel,
                };
                LayerCache::Recurrent(shape, Vec::new())
            }
        })
    }

    /// Keys, and values where they are stored apart.
    pub fn pages(&self) -> Vec<&Pages> {
        match self {
            LayerCache::KeysValues(k, v) => vec![k, v],
            LayerCache::Latent(pages) => vec![pages],
            LayerCache::Recurrent(..) => Vec::new(),
        }
    }

    fn pages_mut(&mut self) -> Vec<&mut Pages> {
        match self {
            LayerCache::KeysValues(k, v) => vec![k, v],
            LayerCache::Latent(pages) => vec![pages],
            LayerCache::Recurrent(..) => Vec::new(),
        }
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.pages().iter().map(|p| p.shape().page_bytes()).sum()
    }

    /// Bytes of a state.
    pub fn state_bytes(&self) -> usize {
        match self {
            LayerCache::Recurrent(shape, _) => shape.bytes(),
            _ => 0,
        }
    }

    /// Makes room for pages `0..n`.
    ///
    /// # Errors
    /// [`Error::Cache`] when the system has no memory.
    pub fn reserve(&mut self, n: usize) -> Result<(), Error> {
        for pages in self.pages_mut() {
            let more = n.saturating_sub(pages.n_pages());
            if more > 0 {
                let name = pages.shape().ty().name().to_string();
                pages.grow(more).map_err(|e| Error::Cache { name, why: e.to_string() })?;
            }
        }
        Ok(())
    }

    /// Makes room for states `0..n`.
    pub fn reserve_states(&mut self, n: usize) {
        if let LayerCache::Recurrent(shape, states) = self {
            while states.len() < n {
                states.push(delta::State::new(*shape));
            }
        }
    }

    pub fn states_mut(&mut self) -> &mut [delta::State] {
        match self {
            LayerCache::Recurrent(_, states) => states,
            _ => &mut [],
        }
    }

    pub fn states(&self) -> &[delta::State] {
        match self {
            LayerCache::Recurrent(_, states) => states,
            _ => &[],
        }
    }

    pub fn copy_page(&mut self, from: u32, to: u32) {
        self.pages_mut().into_iter().for_each(|p| p.copy(from, to));
    }

    /// Moves stored rows to other positions, as [`Move`] says, and turns keys by the distance.
    pub fn move_rows(&mut self, kind: IsaKind, attention: &Attention, ropes: &[RopeTable], moves: &[Move]) {
        let (rope, offset) = match attention {
            Attention::Gqa(a) => (a.rope, 0),
            Attention::Mla(a) => (Some(a.rope), a.kv_rank),
            Attention::DeltaNet(_) => return,
        };
        for m in moves {
            let at = |(page, slot): (u32, usize), i: usize| At { page, slot: (slot + i) as u32 };
            let rows: Vec<(At, At)> = (0..m.n).map(|i| (at(m.from, i), at(m.to, i))).collect();
            let mut back = Vec::new();
            let turn = rope.filter(|_| m.turn_back > 0).map(|id| {
                back.resize(ropes[id.index].n_rot(), 0.0);
                ropes[id.index].cos_sin_back(m.turn_back as u32, &mut back);
                Turn { pairing: pairing(id), cos_sin: &back, offset }
            });
            match self {
                LayerCache::KeysValues(k, v) => {
                    k.move_rows(kind, &rows, turn.as_ref());
                    v.move_rows(kind, &rows, None);
                }
                LayerCache::Latent(pages) => pages.move_rows(kind, &rows, turn.as_ref()),
                LayerCache::Recurrent(..) => {}
            }
        }
    }

    /// Appends the bytes of a page.
    pub fn export_page(&self, page: u32, out: &mut Vec<u8>) {
        self.pages().into_iter().for_each(|p| out.extend_from_slice(p.page(page)));
    }

    /// Fills a page with the bytes that [`LayerCache::export_page`] gave.
    pub fn import_page(&mut self, page: u32, mut bytes: &[u8]) {
        for pages in self.pages_mut() {
            let (mine, rest) = bytes.split_at(pages.shape().page_bytes());
            pages.page_mut(page).copy_from_slice(mine);
            bytes = rest;
        }
    }
}
