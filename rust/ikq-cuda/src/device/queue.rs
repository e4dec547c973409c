//! [`Queue`]: stages that wait to be launched. Those between two crossings to other devices are launched together, so
//! that they can be one graph.

use ikq_model::device::Stage;

use super::Cuda;
use crate::error::Error;

/// Stages in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Queue {
    stages: Vec<Stage>,
    /// Experts per column in the choices that there are before these stages.
    n_used: usize,
}

impl Cuda {
    /// Queues a stage of this device.
    pub(super) fn queue(&mut self, stage: Stage) {
        if self.queue.stages.is_empty() {
            self.queue.n_used = self.n_used;
        }
        if let Stage::Route(l) = stage {
            let router = self.parts.router[l].as_ref().expect("a stage of this device");
            (self.n_used, self.has_routed) = (router.rule.n_used, true);
        }
        self.queue.stages.push(stage);
    }

    /// Launches what is queued.
    pub(super) fn start_queue(&mut self) -> Result<(), Error> {
        if self.queue.stages.is_empty() {
            return Ok(());
        }
        self.host.launches();
        let queue = std::mem::take(&mut self.queue);
        if self.watched().is_some() {
            return self.launch(&queue); // what it reads is copied in between, which a graph cannot do
        }
        let mut graphs = std::mem::take(&mut self.graphs);
        let done = graphs.run(&self.gpu, &queue, || self.launch(&queue));
        self.graphs = graphs;
        done
    }

    fn launch(&self, queue: &Queue) -> Result<(), Error> {
        let mut n_used = queue.n_used;
        for stage in &queue.stages {
            match *stage {
                Stage::Attention(l) => self.attention(l)?,
                Stage::Project(l) => self.project_heads(l)?,
                Stage::Output(l) => self.attention_output(l)?,
                Stage::Dense(l) => self.dense(l)?,
                Stage::Route(l) => n_used = self.route(l)?,
                Stage::Experts(l) => self.experts(l, n_used)?,
                Stage::Shared(l) => self.shared(l)?,
                Stage::Join(l) => self.join(l)?,
                Stage::Head => self.launch_head()?,
                Stage::Embed | Stage::Attend(_) | Stage::End(_) => unreachable!("the CPU has these"),
            }
        }
        Ok(())
    }
}
