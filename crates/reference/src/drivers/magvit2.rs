//! The MAGVIT-v2 video tokenizer as in the paper (entries `magvit2.*` but those of its 2D relatives and losses).

use super::Driver;

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[];
