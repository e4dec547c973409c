//! The recurrence of gated delta-net layers.
