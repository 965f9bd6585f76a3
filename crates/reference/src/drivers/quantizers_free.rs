//! Quantizers without a learned table, and GumbelVQ, IBQ, SimVQ.

use super::Driver;

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[];
