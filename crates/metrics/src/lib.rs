//! The numbers by which video tokenizers and generators are compared.
//!
//! Each of these metrics is in circulation in several conventions that give different numbers. Here a convention is a
//! value that the caller names and a report prints: [`PsnrConvention`], [`SsimConvention`],
//! [`fvd::Preprocessing`], [`frechet::FrechetRule`], [`lpips::Net`]. Videos are `[B, C, T, H, W]` in [-1, 1], as
//! everywhere in the workspace. Values outside that range, the commonest way to a wrong number, are refused.
//!
//! | module | metric | needs weights |
//! | --- | --- | --- |
//! | [`mod@psnr`], [`mod@ssim`] | fidelity of each frame | no |
//! | [`lpips`] | perceptual distance of images; also a training loss | yes |
//! | [`fvd`] (with [`i3d`], [`frechet`]) | distance of two sets of clips | yes |
//! | [`kernel`] | KVD and KID, the same with a kernel | features |
//! | [`usage`] | use and perplexity of a codebook over a whole set | no |
//! | [`compression`] | bits per pixel, ratio, bits per dimension | no |
//!
//! Networks are read from safetensors files that the user names (`docs/metrics.md` says how to make them from the
//! published ones); nothing is fetched, and nothing falls back on other weights.
//!
//! ```
//! use metrics::{PsnrConvention, SsimConvention, psnr, ssim};
//! use tch::{Device, Kind, Tensor};
//!
//! # fn main() -> video_core::Result<()> {
//! let video = Tensor::rand([2, 3, 4, 32, 32], (Kind::Float, Device::Cpu)) * 2 - 1;
//! let blurred = &video * 0.9;
//! let decibels = psnr(&blurred, &video, PsnrConvention::Teco)?; // [2], one per clip
//! let similarity = ssim(&blurred, &video, SsimConvention::Teco)?;
//! assert!(decibels.min().double_value(&[]) > 20.0 && similarity.max().double_value(&[]) < 1.0);
//! # Ok(())
//! # }
//! ```

pub mod compression;
pub mod frechet;
pub mod fvd;
pub mod i3d;
pub mod kernel;
pub mod lpips;
pub mod psnr;
mod range;
pub mod ssim;
pub mod usage;
mod weights;

pub use psnr::{PsnrConvention, psnr, psnr_per_frame};
pub use ssim::{SsimConvention, ssim, ssim_per_frame};
pub use weights::NamedTensors;
