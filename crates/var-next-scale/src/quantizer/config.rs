//! Configuration of the quantizer.

use serde::{Deserialize, Serialize};
use video_core::{Error, Result};

use crate::phi::{NO_RATIO, PhiSharing};
use crate::scales::Pyramid;

/// Configuration of [`MultiScaleVq`](crate::MultiScaleVq), in the words of the published code; the defaults are the
/// published tokenizer's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MultiScaleVqConfig {
    /// V, the codes that all scales share.
    pub vocab_size: i64,
    /// z, the width of a code.
    pub z_channels: i64,
    /// The nearest code is that of the smallest angle, not distance.
    pub using_znorm: bool,
    /// β, the weight of the commitment term.
    pub beta: f64,
    /// r of φ; its sign does not matter, 0 leaves φ out.
    pub quant_resi: f64,
    /// How many φ: 0 for one a scale, 1 for a single one, n for n spread over the scales.
    pub share_quant_resi: usize,
    /// With one φ a scale, how many; 0 for as many as scales.
    pub default_qresi_counts: usize,
    /// How codes start: standard normal at 0, normal with this standard deviation above, and below uniform within this number
    /// over V, so small that at first only the angle to a code counts and all are used.
    pub eini: f64,
    /// The sides of the scales, from coarse to fine; the last is the latent's.
    pub v_patch_nums: Vec<i64>,
}

impl Default for MultiScaleVqConfig {
    fn default() -> Self {
        Self {
            vocab_size: 4096,
            z_channels: 32,
            using_znorm: false,
            beta: 0.25,
            quant_resi: 0.5,
            share_quant_resi: 4,
            default_qresi_counts: 0,
            eini: 0.0,
            v_patch_nums: vec![1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
        }
    }
}

impl MultiScaleVqConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        for (field, value) in [("vocab_size", self.vocab_size), ("z_channels", self.z_channels)] {
            if !(1..=1 << 24).contains(&value) {
                return Err(Error::config(field, value, "1 to 2^24"));
            }
        }
        if !(self.beta >= 0.0 && self.beta.is_finite()) {
            return Err(Error::config("beta", self.beta, "a number of at least 0"));
        }
        if !(-1.0..=1.0).contains(&self.quant_resi) {
            return Err(Error::config("quant_resi", self.quant_resi, "a number in [-1, 1]"));
        }
        if !self.eini.is_finite() {
            return Err(Error::config("eini", self.eini, "a number"));
        }
        for (field, count) in
            [("share_quant_resi", self.share_quant_resi), ("default_qresi_counts", self.default_qresi_counts)]
        {
            if count > 256 {
                return Err(Error::config(field, count, "at most 256"));
            }
        }
        self.pyramid().map(drop)
    }

    /// The scales of an image.
    ///
    /// # Errors
    /// `v_patch_nums` is empty or does not end at its largest.
    pub fn pyramid(&self) -> Result<Pyramid> {
        Pyramid::square(&self.v_patch_nums).map_err(|error| match error {
            Error::Config { expected, .. } => Error::config("v_patch_nums", &self.v_patch_nums, expected),
            other => other,
        })
    }

    /// Which φ there are.
    pub fn sharing(&self) -> PhiSharing {
        match self.share_quant_resi {
            0 if self.default_qresi_counts > 0 => PhiSharing::PerScale(self.default_qresi_counts),
            0 => PhiSharing::PerScale(self.v_patch_nums.len()),
            1 => PhiSharing::Single,
            count => PhiSharing::Partial(count),
        }
    }

    /// How many numbers are trained.
    pub fn parameters(&self) -> i64 {
        let phis = match self.sharing() {
            PhiSharing::Single => 1,
            PhiSharing::PerScale(count) | PhiSharing::Partial(count) => count as i64,
        };
        let z = self.z_channels;
        let phi = if self.quant_resi.abs() <= NO_RATIO { 0 } else { 9 * z * z + z };
        self.vocab_size * z + phis * phi
    }
}
