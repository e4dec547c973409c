//! [`Graphs`]: stages of steps as CUDA graphs. A step has hundreds of launches, each of which takes the host longer than
//! many a kernel runs; a graph is one.
//!
//! What a launch is depends on the [`Shape`] of a step and on where memory is, and on nothing else: all other things
//! that change from step to step are read from the device's memory. When a shape comes for the second time, its launches
//! are recorded. Memory moves only when some is allocated, which is counted; then no graph is valid any more.

use std::collections::{HashMap, VecDeque};

use super::queue::Queue;
use crate::blas_table::MOST_RECORDED;
use crate::environment;
use crate::error::Error;
use crate::gpu::Gpu;
use crate::graph::Graph;

/// Most columns of a step that is recorded. Larger ones are pieces of prompts, whose kernels run longer than it takes to
/// launch them, and which hardly come twice in the same shape.
pub const MOST_COLUMNS: usize = MOST_RECORDED;
/// Shapes whose graphs are kept; the one that was not used for longest goes.
const MOST_SHAPES: usize = 16;
/// Shapes that are remembered because they came once.
const MOST_SEEN: usize = 64;

/// What the launches of a step depend on, besides the stages themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub n_columns: usize,
    pub n_runs: usize,
    /// For each group of layers the page numbers of a column, and the splits of attention without tiles and in tiles.
    pub groups: Vec<[usize; 3]>,
    /// Columns whose logits, whose hidden states, and whose largest logits are wanted, and how many of these.
    pub logits: Vec<u32>,
    pub hidden: Vec<u32>,
    pub best: Vec<u32>,
    pub n_best: usize,
}

type Recorded = HashMap<Queue, Graph>;

/// Graphs of the shapes that came most recently.
#[derive(Default)]
pub struct Graphs {
    /// Whether graphs are not used: because the user says so, or because recording has failed.
    is_off: bool,
    /// What [`Context::allocations`](crate::gpu::Context::allocations) was when graphs were recorded.
    allocations: u64,
    seen: VecDeque<Shape>,
    /// The last ones were used last.
    shapes: Vec<(Shape, Recorded)>,
    /// Whether the last of the shapes is that of the present step.
    is_now: bool,
}

impl Graphs {
    /// Graphs of a device, which are off with `IKQ_CUDA_GRAPHS=0`, and where every kernel is waited for.
    ///
    /// # Errors
    /// [`Error::Variable`].
    pub fn new(gpu: &Gpu) -> Result<Graphs, Error> {
        let is_on = environment::switch(environment::GRAPHS)?.unwrap_or(true);
        Ok(Graphs { is_off: gpu.waits() || !is_on, ..Graphs::default() })
    }

    /// Drops all graphs.
    pub fn clear(&mut self) {
        *self = Graphs { is_off: self.is_off, ..Graphs::default() };
    }

    /// Begins a step of a shape.
    pub fn begin(&mut self, shape: Shape) {
        self.is_now = false;
        if self.is_off || shape.n_columns > MOST_COLUMNS {
            return;
        }
        self.is_now = true;
        if let Some(at) = self.shapes.iter().position(|(s, _)| *s == shape) {
            self.shapes[at..].rotate_left(1);
        } else if let Some(at) = self.seen.iter().position(|s| *s == shape) {
            self.seen.remove(at);
            if self.shapes.len() == MOST_SHAPES {
                self.shapes.remove(0);
            }
            self.shapes.push((shape, Recorded::new()));
        } else {
            self.is_now = false;
            self.seen.truncate(MOST_SEEN - 1);
            self.seen.push_front(shape);
        }
    }

    /// Runs the stages of a queue: what `launch` launches, or the graph that was recorded of it.
    ///
    /// # Errors
    /// Errors of the driver, and of `launch`.
    pub fn run(
        &mut self,
        gpu: &Gpu,
        queue: &Queue,
        launch: impl Fn() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let allocations = gpu.context().allocations();
        if self.allocations != allocations {
            self.shapes.iter_mut().for_each(|(_, recorded)| recorded.clear());
            self.allocations = allocations;
        }
        let Some((_, recorded)) = self.shapes.last_mut().filter(|_| self.is_now) else {
            return launch();
        };
        if let Some(graph) = recorded.get(queue) {
            // SAFETY: nothing was allocated since then, so nothing has moved
            return unsafe { gpu.replay(graph) };
        }
        match gpu.record(|_| launch()) {
            Ok(graph) => {
                // SAFETY: as above
                unsafe { gpu.replay(&graph) }?;
                recorded.insert(queue.clone(), graph);
                Ok(())
            }
            Err(_) => {
                // if the stages themselves fail, this tells why
                self.clear();
                self.is_off = true;
                launch()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(n_columns: usize) -> Shape {
        let (hidden, best) = (Vec::new(), Vec::new());
        Shape { n_columns, n_runs: 1, groups: vec![[1; 3]], logits: vec![0], hidden, best, n_best: 0 }
    }

    fn columns(graphs: &Graphs) -> Vec<usize> {
        graphs.shapes.iter().map(|(s, _)| s.n_columns).collect()
    }

    #[test]
    fn shapes_are_recorded_when_they_come_again() {
        let mut graphs = Graphs::default();
        let mut is_recorded = |n| {
            graphs.begin(shape(n));
            graphs.is_now
        };
        assert_eq!([1, 2, 1, 1, 3, 2].map(&mut is_recorded), [false, false, true, true, false, true]);
        assert_eq!([MOST_COLUMNS + 1; 3].map(&mut is_recorded), [false; 3], "prompts are not recorded");
        assert_eq!(columns(&graphs), [1, 2]);
    }

    #[test]
    fn those_not_used_for_longest_go() {
        let mut graphs = Graphs::default();
        for n in (1..=MOST_SHAPES).flat_map(|n| [n, n]) {
            graphs.begin(shape(n));
        }
        graphs.begin(shape(1));
        (0..2).for_each(|_| graphs.begin(shape(MOST_SHAPES + 1)));
        let kept: Vec<usize> = (3..=MOST_SHAPES).chain([1, MOST_SHAPES + 1]).collect();
        assert_eq!(columns(&graphs), kept);
        for n in 1..1000 {
            graphs.begin(Shape { n_runs: n, ..shape(40) });
        }
        assert_eq!((graphs.seen.len(), columns(&graphs)), (MOST_SEEN, kept));
    }
}
