//! One driver per golden entry, grouped by system.

use crate::case::{Case, CaseError, Outputs};

mod cosmos;
mod magvit2;
mod magvit2_open;
mod maskgit;
mod maskgit_counts;
mod maskgit_flax;
mod maskgit_magvit;
mod maskgit_masks;
mod maskgit_vqgan;
mod metrics;
mod muse;
mod muse_open;
mod muse_vqgan;
mod perceiver_ar;
mod quantizers_free;
mod quantizers_vq;
mod text_encoder;
mod var;
mod video_gpt;

/// Rebuilds what the case describes, runs it, and returns what the case lists.
pub type Driver = fn(&Case) -> Result<Outputs, CaseError>;

const ALL: &[&[(&str, Driver)]] = &[
    cosmos::DRIVERS,
    magvit2::DRIVERS,
    magvit2_open::DRIVERS,
    maskgit::DRIVERS,
    maskgit_counts::DRIVERS,
    maskgit_magvit::DRIVERS,
    maskgit_masks::DRIVERS,
    maskgit_vqgan::DRIVERS,
    metrics::DRIVERS,
    muse::DRIVERS,
    muse_open::DRIVERS,
    muse_vqgan::DRIVERS,
    perceiver_ar::DRIVERS,
    quantizers_free::DRIVERS,
    quantizers_vq::DRIVERS,
    text_encoder::DRIVERS,
    var::DRIVERS,
    video_gpt::DRIVERS,
];

/// The driver of an entry.
pub fn find(entry: &str) -> Option<Driver> {
    ALL.iter().flat_map(|drivers| drivers.iter()).find(|(name, _)| *name == entry).map(|(_, driver)| *driver)
}
