//! Searches shared by the encoders: choose scales and codes, know nothing of bytes.
