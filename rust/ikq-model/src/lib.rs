//! Runs a described model.
