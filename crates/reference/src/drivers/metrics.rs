//! Metrics (entries `metrics.*`).

use std::collections::BTreeMap;

use metrics::NamedTensors;
use metrics::frechet::{FrechetRule, frechet_distance};
use metrics::fvd::Preprocessing;
use metrics::i3d::{I3d, I3dConfig, Mixed, Unit, UnitConfig, max_pool_same};
use metrics::kernel::{Estimator, PolynomialKernel, kernel_distance};
use metrics::lpips::{Lpips, LpipsConfig, Net, Version};
use metrics::psnr::{PsnrConvention, psnr_per_frame_up_to};
use metrics::ssim::{SsimConvention, ssim_per_frame_up_to};
use metrics::usage::CodebookUsage;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::Driver;
use crate::case::{Case, CaseError, Outputs};
use crate::weights::Weights;

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[
    ("metrics.psnr", psnr),
    ("metrics.ssim", ssim),
    ("metrics.codebook_usage", codebook_usage),
    ("metrics.kernel_distance", kernel),
    ("metrics.fvd", fvd),
    ("metrics.fvd.preprocess", preprocess),
    ("metrics.i3d", i3d),
    ("metrics.i3d.unit", i3d_unit),
    ("metrics.i3d.max_pool", i3d_max_pool),
    ("metrics.i3d.inception", i3d_inception),
    ("metrics.lpips.alex", lpips),
    ("metrics.lpips.vgg", lpips),
    ("metrics.lpips.squeeze", lpips),
];

/// `B T H W C` to `B C T H W`.
fn channels_first(video: &Tensor) -> Result<Tensor, CaseError> {
    Ok(video.f_permute([0, 4, 1, 2, 3])?)
}

/// The two videos of a case, `B T H W C`, as `B C T H W`.
fn two_videos(case: &Case) -> Result<[Tensor; 2], CaseError> {
    Ok([channels_first(&case.input("x1")?)?, channels_first(&case.input("x2")?)?])
}

fn per_frame_and_video(per_frame: &Tensor) -> Outputs {
    let mut outputs = Outputs::new();
    outputs.out("per_frame", per_frame);
    outputs.out("per_video", &per_frame.mean_dim(1, false, Kind::Double));
    outputs
}

fn psnr(case: &Case) -> Result<Outputs, CaseError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        convention: PsnrConvention,
        max_value: f64,
    }
    let config: Config = case.config()?;
    let [x1, x2] = two_videos(case)?;
    Ok(per_frame_and_video(&psnr_per_frame_up_to(config.max_value, &x1, &x2, config.convention)?))
}

fn ssim(case: &Case) -> Result<Outputs, CaseError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        convention: SsimConvention,
        data_range: f64,
    }
    let config: Config = case.config()?;
    let [x1, x2] = two_videos(case)?;
    Ok(per_frame_and_video(&ssim_per_frame_up_to(config.data_range, &x1, &x2, config.convention)?))
}

fn codebook_usage(case: &Case) -> Result<Outputs, CaseError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        n_codes: i64,
        eps: f64,
    }
    let config: Config = case.config()?;
    let mut usage = CodebookUsage::new(config.n_codes)?;
    usage.add(&case.input("ids")?)?;
    let mut outputs = Outputs::new();
    outputs.number("perplexity", usage.perplexity_with(config.eps));
    outputs.number("usage", usage.used_share());
    outputs.out("histogram", &usage.histogram()?);
    Ok(outputs)
}

fn kernel(case: &Case) -> Result<Outputs, CaseError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        degree: u32,
        gamma: Option<f64>,
        coef0: f64,
        estimator: Estimator,
    }
    let Config { degree, gamma, coef0, estimator } = case.config()?;
    let kernel = PolynomialKernel { degree, gamma, coef0 };
    let mut outputs = Outputs::new();
    outputs.number("mmd2", kernel_distance(&case.input("x1")?, &case.input("x2")?, &kernel, estimator)?);
    Ok(outputs)
}

fn fvd(case: &Case) -> Result<Outputs, CaseError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        rule: FrechetRule,
    }
    let config: Config = case.config()?;
    // VideoGPT flattens what a network gives for a clip.
    let features = |name: &str| -> Result<Tensor, CaseError> { Ok(case.input(name)?.f_flatten(1, -1)?) };
    let frechet = frechet_distance(&features("x1")?, &features("x2")?, config.rule)?;
    let mut outputs = Outputs::new();
    outputs.number("distance", frechet.distance);
    outputs.number("mean_term", frechet.mean_term);
    outputs.number("trace_term", frechet.trace_term);
    Ok(outputs)
}

fn preprocess(case: &Case) -> Result<Outputs, CaseError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        convention: Preprocessing,
        target_resolution: i64,
    }
    let config: Config = case.config()?;
    let video = case.input("video")?;
    let video = if video.kind() == Kind::Uint8 { video.to_kind(Kind::Float) / 255.0 } else { video };
    // Each reference has its own order of axes, in and out.
    let (channels_last_in, channels_last_out) = match config.convention {
        Preprocessing::StyleganV => (false, false),
        Preprocessing::Videogpt => (true, false),
        Preprocessing::Tf1Legacy | Preprocessing::Tf2 => (true, true),
    };
    let video = if channels_last_in { channels_first(&video)? } else { video };
    let input = config.convention.prepare_unit(&video, config.target_resolution)?;
    let mut outputs = Outputs::new();
    outputs.out("y", &if channels_last_out { input.permute([0, 2, 3, 4, 1]) } else { input });
    Ok(outputs)
}

/// The case's weights under their own names, which are those of a published I3D file.
fn named(case: &Case) -> NamedTensors {
    NamedTensors::new(format!("the case {}", case.name), case.weights())
}

fn i3d(case: &Case) -> Result<Outputs, CaseError> {
    let network = I3d::new(case.config::<I3dConfig>()?, &named(case), Device::Cpu)?;
    let mut outputs = Outputs::new();
    let features = network.features(&case.input("x")?, |name, x| {
        outputs.out(format!("mean_{name}"), &x.mean_dim([2i64, 3, 4].as_slice(), false, Kind::Float));
        if name == "Mixed_5c" {
            outputs.out("shape_Mixed_5c", &Tensor::from_slice(&x.size()));
        }
    })?;
    // The reference squeezes the axis of height, then the one that took its place: a map is left where height is 1 and
    // width is not.
    let logits = network.classify(&features)?.mean_dim(2, false, Kind::Float).squeeze_dim(2);
    let logits = if logits.dim() > 2 { logits.squeeze_dim(2) } else { logits };
    outputs.out("features", &features).out("logits", &logits);
    Ok(outputs)
}

fn i3d_unit(case: &Case) -> Result<Outputs, CaseError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        in_channels: i64,
        out_channels: i64,
        kernel: [i64; 3],
        stride: [i64; 3],
        batch_norm_relu: bool,
        bias: bool,
    }
    let Config { in_channels, out_channels, kernel, stride, batch_norm_relu, bias } = case.config()?;
    let bn_eps = I3dConfig::default().bn_eps;
    let config = UnitConfig { in_channels, out_channels, kernel, stride, batch_norm_relu, bias, bn_eps };
    let unit = Unit::new(config, &named(case), Device::Cpu)?;
    let mut outputs = Outputs::new();
    outputs.out("y", &unit.forward(&case.input("x")?)?);
    Ok(outputs)
}

fn i3d_max_pool(case: &Case) -> Result<Outputs, CaseError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        kernel: [i64; 3],
        stride: [i64; 3],
    }
    let Config { kernel, stride } = case.config()?;
    let mut outputs = Outputs::new();
    outputs.out("y", &max_pool_same(&case.input("x")?, kernel, stride)?);
    Ok(outputs)
}

fn i3d_inception(case: &Case) -> Result<Outputs, CaseError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        in_channels: i64,
        out_channels: [i64; 6],
    }
    let Config { in_channels, out_channels } = case.config()?;
    let bn_eps = I3dConfig::default().bn_eps;
    let mixed = Mixed::new(in_channels, out_channels, bn_eps, &named(case), Device::Cpu)?;
    let mut outputs = Outputs::new();
    outputs.out("y", &mixed.forward(&case.input("x")?)?);
    Ok(outputs)
}

fn lpips(case: &Case) -> Result<Outputs, CaseError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        net: Net,
        width_div: i64,
        version: Version,
        lpips: bool,
        normalize: bool,
        slice_channels: Vec<i64>,
    }
    let config: Config = case.config()?;
    if case.entry.rsplit('.').next() != Some(config.net.to_string().as_str()) {
        return Err(CaseError::Config(format!("net {} in the entry {}", config.net, case.entry)));
    }
    let ours = LpipsConfig {
        net: config.net,
        version: config.version,
        learned_heads: config.lpips,
        width_div: config.width_div,
    };
    let channels = ours.tap_channels()?;
    if channels != config.slice_channels {
        return Err(CaseError::Config(format!(
            "slice_channels {:?}, {} has {channels:?}",
            config.slice_channels, config.net
        )));
    }
    let (backbone, heads) = split_lpips_module(case.weights());
    let (backbone, heads) =
        (NamedTensors::new("the backbone", backbone), NamedTensors::new("the heads", heads));
    let lpips = Lpips::new(ours, &backbone, &heads, Device::Cpu)?;
    let image = |name: &str| -> Result<Tensor, CaseError> {
        let image = case.input(name)?;
        Ok(if config.normalize { image * 2.0 - 1.0 } else { image })
    };
    let (x0, x1) = (image("x0")?, image("x1")?);
    let spatial = lpips.spatial(&x0, &x1)?;
    let mut outputs = Outputs::new();
    outputs.out("distance", &lpips.distance(&x0, &x1)?);
    outputs.out("per_layer", &lpips.per_tap(&x0, &x1)?);
    outputs.out("spatial_mean", &spatial.mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float));
    outputs.out("spatial", &spatial);
    Ok(outputs)
}

/// A whole LPIPS module's tensors as its two published files: `net.slice{s}.{i}.x` is torchvision's `features.{i}.x`.
fn split_lpips_module(module: Weights) -> (Weights, Weights) {
    let (mut backbone, mut heads) = (BTreeMap::new(), BTreeMap::new());
    for (name, tensor) in module {
        match name.strip_prefix("net.slice").and_then(|rest| rest.split_once('.')) {
            Some((_, rest)) => backbone.insert(format!("features.{rest}"), tensor),
            None => heads.insert(name, tensor),
        };
    }
    (backbone, heads)
}
