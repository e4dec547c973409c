//! The factors of covariances, each made once and shared by all rows that read the same input.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ikq_covariance::{Factors, NotPositive, Wanted};
use ikq_simd::IsaKind;

use super::Covariances;
use crate::plan::Plan;

type Key = (usize, usize);
type Made = Arc<OnceLock<Result<Arc<Factors>, NotPositive>>>;

/// A cache of factors: those in use and the last ones before them.
pub(crate) struct FactorCache {
    covariances: Arc<Covariances>,
    kind: IsaKind,
    /// Whether they are for further rounds, too.
    whole: bool,
    capacity: usize,
    /// The cached factors, the last used at the end.
    slots: Mutex<VecDeque<(Key, Made)>>,
}

impl FactorCache {
    /// A cache that holds as many factors as `n_threads` threads need; `None` for a plan without covariances.
    pub fn new(plan: &Plan, kind: IsaKind, n_threads: usize) -> Option<FactorCache> {
        let (covariances, capacity) = (plan.covariances.clone()?, FactorCache::capacity(n_threads));
        Some(FactorCache { covariances, kind, whole: plan.in_rounds, capacity, slots: Mutex::default() })
    }

    /// The file of covariances that the factors are made from.
    pub fn path(&self) -> &Path {
        &self.covariances.path
    }

    /// How many factors are kept: one for each thread, and some that other tensors of the layer will want.
    pub fn capacity(n_threads: usize) -> usize {
        n_threads + 2
    }

    /// The factors of a group; `None` where too few tokens have reached it.
    ///
    /// # Errors
    /// [`NotPositive`].
    pub fn get(&self, site: usize, group: usize) -> Result<Option<Arc<Factors>>, NotPositive> {
        if !self.covariances.sites[site].is_known(group) {
            return Ok(None);
        }
        let key = (site, group);
        let made = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let slot = match slots.iter().position(|(k, _)| *k == key) {
                Some(at) => slots.remove(at).unwrap_or_default(),
                None => (key, Made::default()),
            };
            let made = slot.1.clone();
            slots.push_back(slot);
            while slots.len() > self.capacity {
                slots.pop_front();
            }
            made
        };
        // threads that want the same one wait here; those that want others do not
        made.get_or_init(|| self.make(site, group).map(Arc::new)).clone().map(Some)
    }

    fn make(&self, site: usize, group: usize) -> Result<Factors, NotPositive> {
        let site = &self.covariances.sites[site];
        let (lower, cross) = site.weighed(group);
        let wanted = Wanted { cross: site.missing().zip(cross.as_deref()), whole: self.whole };
        Factors::with(self.kind, &lower, site.k, f64::from(site.counts[group]), wanted)
    }
}
