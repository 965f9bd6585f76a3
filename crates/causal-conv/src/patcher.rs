//! Patches of pixels as channels.

use serde::{Deserialize, Serialize};
use tch::Tensor;
use video_core::{Error, Result};

use crate::time::Past;

/// How the pixels of a patch become channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchMethod {
    /// The Haar wavelet transform, log2 of the patch size times over, of every band each time. Scaled so that the lowest
    /// band is the patch's mean.
    #[default]
    Haar,
    /// The pixels as they are.
    Rearrange,
}

impl PatchMethod {
    /// Refuses patches that the transform cannot make.
    pub(crate) fn check_size(self, size: i64) -> Result<()> {
        if size < 1 || (self == Self::Haar && !(size as u64).is_power_of_two()) {
            let expected = "a power of two, or any size with patch_method = \"rearrange\"";
            return Err(Error::config("patch_size", size, expected));
        }
        Ok(())
    }
}

/// Pixels of patches as channels, and back: an orthogonal change of basis up to scale, without weights.
///
/// In two dimensions every frame is patched by itself; Haar bands are ordered (width, height, channel), LL LH HL HH. In
/// three, the clip's first frame is repeated so that it fills a patch alone (1 + p·k frames give 1 + k); Haar bands are
/// ordered (time, height, width, channel). Rearranged channels are ordered (channel, time, height, width).
#[derive(Clone, Copy, Debug)]
pub struct Patcher {
    method: PatchMethod,
    size: i64,
    in_time: bool,
}

impl Patcher {
    /// Patches of `size` pixels along height and width, and along time too where `in_time` says so.
    ///
    /// # Errors
    /// A size below 1, or one for the Haar transform that is no power of two.
    pub fn new(method: PatchMethod, size: i64, in_time: bool) -> Result<Self> {
        method.check_size(size)?;
        Ok(Self { method, size, in_time })
    }

    /// Channels per channel of video.
    pub fn volume(&self) -> i64 {
        self.size.pow(if self.in_time { 3 } else { 2 })
    }

    /// `[B, C, T, H, W]` to `[B, volume·C, T', H/p, W/p]`, where 1 + p·k frames give T' = 1 + k if time is patched.
    ///
    /// # Errors
    /// Not five axes, or a size that p does not divide.
    pub fn patch(&self, video: &Tensor) -> Result<Tensor> {
        let size = video.size();
        let p = self.size;
        let time_fits = size.len() == 5 && size[2] >= 1 && (!self.in_time || (size[2] - 1) % p == 0);
        if !time_fits || size[3] % p != 0 || size[4] % p != 0 {
            let frames = if self.in_time { format!("1 + k·{p} frames") } else { "any frames".into() };
            let expected = format!("[B, C, T, H, W] with {frames}, height and width multiples of {p}");
            return Err(Error::shape("video to patch", &size, expected));
        }
        Ok(self.run(video, &Past::WholeClip))
    }

    /// The inverse of [`Patcher::patch`].
    ///
    /// # Errors
    /// Not five axes, or channels that the volume of a patch does not divide.
    pub fn unpatch(&self, patches: &Tensor) -> Result<Tensor> {
        let size = patches.size();
        if size.len() != 5 || size[1] % self.volume() != 0 || size.contains(&0) {
            let expected = format!("[B, {}·C, T, H, W] with no empty axis", self.volume());
            return Err(Error::shape("patches", &size, expected));
        }
        Ok(self.run_back(patches, &Past::WholeClip))
    }

    pub(crate) fn run(&self, video: &Tensor, past: &Past) -> Tensor {
        let p = self.size;
        let mut x = video.shallow_clone();
        if self.in_time && past.starts_clip() && p > 1 {
            let first = x.narrow(2, 0, 1).expand([-1, -1, p - 1, -1, -1], true);
            x = Tensor::cat(&[&first, &x], 2);
        }
        match self.method {
            PatchMethod::Rearrange => {
                let (b, c, t, h, w) = x.size5().expect("a video has five axes");
                let pt = self.time_size();
                x.reshape([b, c, t / pt, pt, h / p, p, w / p, p]).permute([0, 1, 3, 5, 7, 2, 4, 6]).reshape([
                    b,
                    self.volume() * c,
                    t / pt,
                    h / p,
                    w / p,
                ])
            }
            PatchMethod::Haar => {
                for _ in 0..p.ilog2() {
                    for &axis in self.haar_axes() {
                        let (even, odd) =
                            (x.slice(axis, 0, None::<i64>, 2), x.slice(axis, 1, None::<i64>, 2));
                        x = Tensor::cat(&[(&even + &odd) * 0.5, (even - odd) * 0.5], 1);
                    }
                }
                x
            }
        }
    }

    pub(crate) fn run_back(&self, patches: &Tensor, past: &Past) -> Tensor {
        let p = self.size;
        let mut x = patches.shallow_clone();
        match self.method {
            PatchMethod::Rearrange => {
                let (b, c, t, h, w) = x.size5().expect("a video has five axes");
                let (pt, channels) = (self.time_size(), c / self.volume());
                x = x.reshape([b, channels, pt, p, p, t, h, w]).permute([0, 1, 5, 2, 6, 3, 7, 4]).reshape([
                    b,
                    channels,
                    t * pt,
                    h * p,
                    w * p,
                ]);
            }
            PatchMethod::Haar => {
                for _ in 0..p.ilog2() {
                    for &axis in self.haar_axes().iter().rev() {
                        let bands = x.chunk(2, 1);
                        let (even, odd) = (&bands[0] + &bands[1], &bands[0] - &bands[1]);
                        x = Tensor::stack(&[even, odd], axis + 1).flatten(axis, axis + 1);
                    }
                }
            }
        }
        let drop = if self.in_time && past.starts_clip() { p - 1 } else { 0 };
        x.narrow(2, drop, x.size()[2] - drop)
    }

    fn time_size(&self) -> i64 {
        if self.in_time { self.size } else { 1 }
    }

    /// Each axis splits all bands there are into a low and a high half, the newest split being the slowest in the order of
    /// the channels.
    fn haar_axes(&self) -> &'static [i64] {
        if self.in_time { &[4, 3, 2] } else { &[3, 4] }
    }
}
