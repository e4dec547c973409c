//! [`Starts`]: the inputs of the first tokens of texts.

/// The inputs of the first tokens of texts. They are part of the sums, too.
#[derive(Clone, Debug, Default)]
pub struct Starts {
    /// The group that each has reached.
    pub groups: Vec<u32>,
    /// What was met, `k` floats each.
    pub met: Vec<f32>,
    /// What each lacks ([`crate::Missing`]), all of them the same number of floats; empty where nothing else is wanted.
    pub missing: Vec<f32>,
}

impl<'a> FromIterator<&'a Starts> for Starts {
    fn from_iter<I: IntoIterator<Item = &'a Starts>>(all: I) -> Starts {
        let mut sum = Starts::default();
        for each in all {
            sum.groups.extend(&each.groups);
            sum.met.extend(&each.met);
            sum.missing.extend(&each.missing);
        }
        sum
    }
}
