//! Floats that start a cache line: vectors of sixteen then never lie across two.

/// A run of floats; new ones are zero.
#[derive(Default)]
pub(crate) struct Aligned {
    /// The run, with room in front of it to start where a line does.
    data: Vec<f32>,
    start: usize,
    len: usize,
}

/// Floats of a cache line.
const LINE: usize = 16;

impl Aligned {
    /// Makes the run at least `len` floats long; what it holds is unspecified.
    pub fn reserve(&mut self, len: usize) {
        if self.len < len {
            self.data = vec![0.0; len + LINE];
            self.start = self.data.as_ptr().align_offset(4 * LINE).min(LINE);
            self.len = len;
        }
    }

    pub fn get(&self) -> &[f32] {
        &self.data[self.start..self.start + self.len]
    }

    pub fn get_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::Aligned;

    #[test]
    fn runs_start_a_line_and_grow() {
        let mut run = Aligned::default();
        assert!(run.get().is_empty());
        for len in [3, 1, 5000] {
            run.reserve(len);
            assert!(run.get().len() >= len && run.get_mut().len() == run.get().len());
            assert_eq!(run.get().as_ptr() as usize % 64, 0);
        }
    }
}
