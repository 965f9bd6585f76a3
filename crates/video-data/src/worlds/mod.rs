//! Synthetic worlds, made in-process from a seed.

pub mod shapes;
