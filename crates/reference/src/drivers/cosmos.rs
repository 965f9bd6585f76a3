//! Cosmos tokenizers and VidTok's convolution (entries `cosmos.*`, `vidtok.*`).

use super::Driver;

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[];
