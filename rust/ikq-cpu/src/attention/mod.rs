//! The key/value cache and attention over it.
