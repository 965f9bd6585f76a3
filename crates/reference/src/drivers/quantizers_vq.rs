//! Vector quantizers with a table (entries `quantizers.vq.*` and kin).

use super::Driver;

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[];
