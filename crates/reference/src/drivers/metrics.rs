//! Metrics (entries `metrics.*`).

use super::Driver;

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[];
