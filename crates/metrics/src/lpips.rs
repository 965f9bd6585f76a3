//! LPIPS: the perceptual distance of two images (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a
//! Perceptual Metric", arXiv 1801.03924).
//!
//! Both images pass through a frozen classification network. At each tap the features are brought to unit length, and the
//! squared differences are weighted by a learned head; the distance is the mean over positions, summed over taps.
//! Gradients flow to both images, so that it serves as a training loss too.

mod backbone;

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use video_core::{Error, Result};

use crate::range;
use crate::weights::NamedTensors;
use backbone::Backbone;

/// Which network's features are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Net {
    /// AlexNet: the usual one for evaluation.
    #[default]
    Alex,
    /// VGG16: the usual one as a training loss.
    Vgg,
    /// SqueezeNet 1.1.
    Squeeze,
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alex => "alex",
            Self::Vgg => "vgg",
            Self::Squeeze => "squeeze",
        })
    }
}

impl Net {
    /// The least height and width of an image, in pixels.
    pub fn smallest_side(self) -> i64 {
        match self {
            Self::Alex => 31,
            Self::Vgg => 16,
            Self::Squeeze => 17,
        }
    }
}

/// The published version of the metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    /// Without the scaling of the images: a mistake of the first release, for old numbers only.
    #[serde(rename = "0.0")]
    V0_0,
    /// With it.
    #[default]
    #[serde(rename = "0.1")]
    V0_1,
}

/// A variant of LPIPS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LpipsConfig {
    /// The network.
    pub net: Net,
    /// The version; 0.1 unless old numbers are to be compared.
    pub version: Version,
    /// Whether learned heads weight the channels. Without them the squared differences are summed (the paper's baseline).
    pub learned_heads: bool,
    /// What every channel count is divided by: 1 for published weights, more for small networks in tests.
    pub width_div: i64,
}

impl Default for LpipsConfig {
    fn default() -> Self {
        Self { net: Net::default(), version: Version::default(), learned_heads: true, width_div: 1 }
    }
}

impl LpipsConfig {
    /// Refuses what cannot be built.
    ///
    /// # Errors
    /// A `width_div` that leaves a layer no channel.
    pub fn validate(&self) -> Result<()> {
        let narrowest = match self.net {
            Net::Alex | Net::Vgg => 64,
            Net::Squeeze => 16,
        };
        if !(1..=narrowest).contains(&self.width_div) {
            return Err(Error::config("width_div", self.width_div, format!("1 to {narrowest}")));
        }
        Ok(())
    }

    /// The tensors that the backbone's file must hold, by torchvision's names (`features.0.weight`), with their shapes.
    ///
    /// # Errors
    /// An invalid config.
    pub fn backbone_tensors(&self) -> Result<Vec<(String, Vec<i64>)>> {
        let mut expected = Vec::new();
        self.outline(|name, shape| expected.push((name, shape)))?;
        Ok(expected)
    }

    /// The tensors that the heads' file must hold (`lin0.model.1.weight`), with their shapes; none for the baseline.
    ///
    /// # Errors
    /// An invalid config.
    pub fn head_tensors(&self) -> Result<Vec<(String, Vec<i64>)>> {
        let channels = if self.learned_heads { self.tap_channels()? } else { Vec::new() };
        let head =
            |(tap, &channels): (usize, &i64)| (format!("lin{tap}.model.1.weight"), vec![1, channels, 1, 1]);
        Ok(channels.iter().enumerate().map(head).collect())
    }

    /// The channels at each tap.
    ///
    /// # Errors
    /// An invalid config.
    pub fn tap_channels(&self) -> Result<Vec<i64>> {
        self.outline(|_, _| ())
    }

    /// The channels at each tap, and `visit` with each of the backbone's tensors.
    fn outline(&self, mut visit: impl FnMut(String, Vec<i64>)) -> Result<Vec<i64>> {
        self.validate()?;
        let backbone = Backbone::build(self.net, self.width_div, &mut |name, shape| {
            visit(name, shape);
            Ok(Tensor::new())
        })?;
        Ok(backbone.taps)
    }
}

/// The metric, with its weights.
pub struct Lpips {
    config: LpipsConfig,
    backbone: Backbone,
    /// Per tap `[1, C, 1, 1]`; none for the baseline.
    heads: Vec<Tensor>,
    shift: Tensor,
    scale: Tensor,
    device: Device,
}

impl fmt::Debug for Lpips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lpips")
            .field("config", &self.config)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl Lpips {
    /// LPIPS 0.1 from two safetensors files: a backbone by torchvision's names, whose classifier may be in it, and the
    /// published heads.
    ///
    /// # Errors
    /// A file is missing or cut short; the first tensor that is missing, misshapen (with both shapes) or of another network.
    pub fn load(net: Net, backbone: &Path, heads: &Path, device: Device) -> Result<Self> {
        let config = LpipsConfig { net, ..LpipsConfig::default() };
        Self::new(config, &NamedTensors::read(backbone)?, &NamedTensors::read(heads)?, device)
    }

    /// Any variant from tensors by the names of [`LpipsConfig::backbone_tensors`] and [`LpipsConfig::head_tensors`].
    ///
    /// # Errors
    /// An invalid config; tensors as for [`Lpips::load`].
    pub fn new(
        config: LpipsConfig,
        backbone: &NamedTensors,
        heads: &NamedTensors,
        device: Device,
    ) -> Result<Self> {
        let (backbone_tensors, head_tensors) = (config.backbone_tensors()?, config.head_tensors()?);
        let network = Backbone::build(config.net, config.width_div, &mut |name, shape| {
            backbone.get(&name, &shape, device)
        })?;
        backbone.refuse_others(&backbone_tensors, |name| name.starts_with("features."))?;
        if config.learned_heads {
            // A loaded module also lists its heads as `lins.0...`: those are the same and not looked at.
            let numbered = |name: &str| {
                name.strip_prefix("lin").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
            };
            heads.refuse_others(&head_tensors, numbered)?;
        }
        let constant = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]).to_device(device);
        Ok(Self {
            config,
            backbone: network,
            heads: head_tensors
                .iter()
                .map(|(name, shape)| heads.get(name, shape, device))
                .collect::<Result<_>>()?,
            shift: constant([-0.030, -0.088, -0.188]),
            scale: constant([0.458, 0.448, 0.450]),
            device,
        })
    }

    /// The variant.
    pub fn config(&self) -> &LpipsConfig {
        &self.config
    }

    /// The distance of images `[N, 3, H, W]` in [-1, 1]: `[N]`, with gradients to both.
    ///
    /// Values are not checked, since a reconstruction under training may leave the range; [`Lpips::video_distance`] checks.
    ///
    /// # Errors
    /// Other or different shapes, not float, images smaller than [`Net::smallest_side`].
    pub fn distance(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok(self.per_tap(a, b)?.sum_dim_intlist(1, false, Kind::Float))
    }

    /// What each tap contributes to [`Lpips::distance`]: `[N, taps]`.
    ///
    /// # Errors
    /// As [`Lpips::distance`].
    pub fn per_tap(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let maps = self.maps(a, b)?;
        let means: Vec<Tensor> =
            maps.iter().map(|map| map.mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float)).collect();
        Ok(Tensor::stack(&means, 1))
    }

    /// Where images differ: each tap's map brought to the images' size, summed, `[N, 1, H, W]`. Its mean, which
    /// common_metrics prints, differs a little from [`Lpips::distance`].
    ///
    /// # Errors
    /// As [`Lpips::distance`].
    pub fn spatial(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let maps = self.maps(a, b)?;
        let size = [a.size()[2], a.size()[3]];
        Ok(maps.iter().map(|map| map.upsample_bilinear2d(size, false, None, None)).sum())
    }

    /// The metric of videos `[B, 3, T, H, W]` in [-1, 1]: the mean distance of their frames, `[B]`, without gradients.
    ///
    /// # Errors
    /// As [`Lpips::distance`], and values outside the range.
    pub fn video_distance(&self, ours: &Tensor, theirs: &Tensor) -> Result<Tensor> {
        let shape = range::check_video("ours", ours, -1.0, 1.0)?;
        range::check_video("theirs", theirs, -1.0, 1.0)?;
        range::check_same_shape(ours, theirs)?;
        let mut sum = Tensor::zeros([shape.batch], (Kind::Float, self.device));
        for frame in 0..shape.frames {
            sum += tch::no_grad(|| self.distance(&ours.select(2, frame), &theirs.select(2, frame)))?;
        }
        Ok(sum / shape.frames as f64)
    }

    /// The weighted differences at each tap, `[N, 1, h, w]`.
    fn maps(&self, a: &Tensor, b: &Tensor) -> Result<Vec<Tensor>> {
        self.check(a)?;
        range::check_same_shape(a, b)?;
        self.check(b)?;
        let features = |images: &Tensor| {
            let images = images.to_device(self.device).to_kind(Kind::Float);
            self.backbone.features(&match self.config.version {
                Version::V0_0 => images,
                Version::V0_1 => (images - &self.shift) / &self.scale,
            })
        };
        let pairs = features(a).into_iter().zip(features(b));
        Ok(pairs
            .enumerate()
            .map(|(tap, (a, b))| {
                let difference = (unit_length(&a) - unit_length(&b)).square();
                match self.heads.get(tap) {
                    Some(head) => difference.conv2d(head, None::<Tensor>, 1, 0, 1, 1).to_kind(Kind::Float),
                    None => difference.sum_dim_intlist(1, true, Kind::Float),
                }
            })
            .collect())
    }

    fn check(&self, images: &Tensor) -> Result<()> {
        let (size, least) = (images.size(), self.config.net.smallest_side());
        match size[..] {
            [n, 3, height, width] if n > 0 && height.min(width) >= least => {}
            _ => {
                return Err(Error::shape(
                    "images",
                    &size,
                    format!("[N, 3, H, W] with H and W of at least {least} for LPIPS {}", self.config.net),
                ));
            }
        }
        if !matches!(images.kind(), Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16) {
            return Err(Error::input("images", format!("kind {:?}", images.kind()), "a float tensor"));
        }
        Ok(())
    }
}

/// Features `[N, C, h, w]`, of unit length at each position. The published eps of 1e-10 is added to the length.
fn unit_length(features: &Tensor) -> Tensor {
    // At a position where no feature is active the root's gradient is infinite and the loss would turn NaN; the clamp
    // gives zero there and is far below eps everywhere else.
    let square = features.square().sum_dim_intlist(1, true, Kind::Float).clamp_min(1e-30);
    features / (square.sqrt() + 1e-10)
}
