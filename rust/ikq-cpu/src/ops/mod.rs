//! The operations of language models beside matrix products.
