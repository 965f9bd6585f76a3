//! Metrics that need published weights: LPIPS and FVD, where the config names the files; else why they are absent.

use std::path::Path;

use anyhow::Result;
use tch::{Device, Kind, Tensor};
use video_data::Clip;

use crate::config::RunConfig;
use crate::objective::{load_lpips, lpips_of_video};

/// Adds what can be computed to `extra`, and what cannot, with the reason, to `absent`.
///
/// # Errors
/// Weights that are named but missing or misfitting: a metric that was asked for is never left out silently.
pub fn measure(
    config: &RunConfig,
    device: Device,
    clips: &[Clip],
    reconstructions: &[Tensor],
    extra: &mut Vec<(String, f64)>,
    absent: &mut Vec<(String, String)>,
) -> Result<()> {
    let originals: Vec<Tensor> = clips.iter().map(Clip::to_float).collect();
    match &config.objective.perceptual {
        None => {
            absent.push(("LPIPS".into(), "no weights named in objective.perceptual (docs/metrics.md)".into()))
        }
        Some(perceptual) => {
            let lpips = load_lpips(perceptual, device)?;
            let mut sum = 0.0;
            for (ours, theirs) in reconstructions.iter().zip(&originals) {
                let distance = tch::no_grad(|| {
                    lpips_of_video(
                        &lpips,
                        &ours.unsqueeze(0).to_device(device),
                        &theirs.unsqueeze(0).to_device(device),
                    )
                })?;
                sum += distance.to_kind(Kind::Double).double_value(&[]);
            }
            extra.push((
                format!("LPIPS ({:?}, mean over frames)", perceptual.net),
                sum / originals.len() as f64,
            ));
        }
    }
    measure_fvd(config, device, "FVD", &originals, reconstructions, extra, absent)
}

/// Adds the FVD between held-out clips and others `[C, T, H, W]` under a name, or why it is absent.
///
/// # Errors
/// As [`measure`].
pub fn measure_fvd(
    config: &RunConfig,
    device: Device,
    name: &str,
    originals: &[Tensor],
    others: &[Tensor],
    extra: &mut Vec<(String, f64)>,
    absent: &mut Vec<(String, String)>,
) -> Result<()> {
    let Some(path) = &config.evaluation.i3d else {
        absent.push((name.into(), "no I3D weights named in evaluation.i3d (docs/metrics.md)".into()));
        return Ok(());
    };
    let frames = originals[0].size()[1];
    if frames < 9 {
        absent.push((name.into(), format!("I3D needs at least 9 frames, the clips have {frames}")));
        return Ok(());
    }
    let i3d = metrics::i3d::I3d::load(Path::new(path), device)?;
    let value = metrics::fvd::fvd(&i3d, originals, others, metrics::fvd::Preprocessing::StyleganV)?;
    extra.push((format!("{name} (styleganv, {} clips of {frames} frames)", originals.len()), value));
    Ok(())
}
