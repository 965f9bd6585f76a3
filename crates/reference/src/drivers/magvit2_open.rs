//! Open-MAGVIT2, discriminators and GAN losses (entries `magvit2.open.*`, `magvit2.gan.*`).

use super::Driver;

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[];
