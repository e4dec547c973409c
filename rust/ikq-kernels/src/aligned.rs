//! Numbers that start a cache line: vectors of 64 bytes then never lie across two.

/// A run of numbers (floats if nothing else is said); new ones are zero.
#[derive(Default)]
pub(crate) struct Aligned<T = f32> {
    /// The run, behind as much unused room as it needs to start at a cache line.
    data: Vec<T>,
    start: usize,
    len: usize,
}

/// Bytes of a cache line.
const LINE: usize = 64;

impl<T: Copy + Default> Aligned<T> {
    /// Makes the run at least `len` numbers long; what it holds is unspecified.
    pub fn reserve(&mut self, len: usize) {
        if self.len < len {
            let room = LINE / size_of::<T>();
            self.data = vec![T::default(); len + room];
            self.start = self.data.as_ptr().align_offset(LINE).min(room);
            self.len = len;
        }
    }

    pub fn get(&self) -> &[T] {
        &self.data[self.start..self.start + self.len]
    }

    pub fn get_mut(&mut self) -> &mut [T] {
        &mut self.data[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::Aligned;

    #[test]
    fn runs_start_a_line_and_grow() {
        let mut run = Aligned::<f32>::default();
        assert!(run.get().is_empty());
        for len in [3, 1, 5000] {
            run.reserve(len);
            assert!(run.get().len() >= len && run.get_mut().len() == run.get().len());
            assert_eq!(run.get().as_ptr() as usize % 64, 0);
        }
    }
}
