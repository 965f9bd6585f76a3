//! What a tokenizer is trained for: reconstruction, the quantizer's losses, and where configured a perceptual and an
//! adversarial part.

use std::path::Path;

use anyhow::Result;
use causal_conv::gan::Adversary;
use metrics::lpips::Lpips;
use quantizers::Mode;
use tch::{Kind, Tensor, nn};
use training::{Objective, Part, StepLoss};
use video_data::Batch;

use crate::config::{Distance, ObjectiveConfig, PerceptualConfig, RunConfig};
use crate::tokenizer::Tokenizer;

/// The generator is part 0, the discriminator, if there is one, part 1.
pub struct TokenizerObjective {
    /// The tokenizer under training.
    pub tokenizer: Tokenizer,
    /// Its variables.
    pub variables: nn::VarStore,
    config: ObjectiveConfig,
    lpips: Option<(Lpips, f64)>,
    adversary: Option<(Adversary, nn::VarStore)>,
    /// What the generator made of the present batch, for the discriminator.
    reconstruction: Option<Tensor>,
}

impl TokenizerObjective {
    /// A fresh tokenizer, and what it is trained with, on a device.
    ///
    /// # Errors
    /// A config that a component refuses, missing LPIPS weights.
    pub fn new(config: &RunConfig, device: tch::Device) -> Result<Self> {
        let variables = nn::VarStore::new(device);
        let tokenizer = config.tokenizer.build(&variables.root())?;
        let lpips = match &config.objective.perceptual {
            Some(perceptual) => Some((load_lpips(perceptual, device)?, perceptual.weight)),
            None => None,
        };
        let adversary = match &config.objective.gan {
            Some(gan) => {
                let variables = nn::VarStore::new(device);
                let adversary = Adversary::new(&variables.root(), gan, config.clip_shape())
                    .map_err(|e| e.within("objective.gan"))?;
                Some((adversary, variables))
            }
            None => None,
        };
        Ok(Self {
            tokenizer,
            variables,
            config: config.objective.clone(),
            lpips,
            adversary,
            reconstruction: None,
        })
    }

    fn generator_loss(&mut self, video: &Tensor, step: u64) -> video_core::Result<StepLoss> {
        let output = self.tokenizer.forward(video, Mode::Train { step })?;
        let reconstruction = output.reconstruction;
        let distance = match self.config.distance {
            Distance::L1 => (&reconstruction - video).abs().mean(Kind::Float),
            Distance::Mse => (&reconstruction - video).square().mean(Kind::Float),
        };
        let mut fidelity = &distance * self.config.reconstruction_weight;
        let mut scalars = vec![("reconstruction".to_string(), distance)];
        if let Some((lpips, weight)) = self.lpips.as_ref().filter(|(_, weight)| *weight > 0.0) {
            let perceptual = lpips_of_video(lpips, &reconstruction, video)?;
            fidelity += &perceptual * *weight;
            scalars.push(("perceptual".into(), perceptual));
        }
        let mut total = &fidelity + output.quantized.loss();
        for (name, loss) in &output.quantized.losses {
            scalars.push(((*name).into(), loss.shallow_clone()));
        }
        if let Some(usage) = &output.quantized.usage {
            scalars.push(("used_share".into(), usage.used_share.shallow_clone()));
            scalars.push(("perplexity".into(), usage.perplexity.shallow_clone()));
        }
        if let Some((adversary, _)) = self.adversary.as_ref().filter(|(adversary, _)| adversary.active(step))
        {
            let terms = adversary.generator_terms(&reconstruction, &fidelity, self.tokenizer.last_layer())?;
            total += &terms.total;
            scalars.push(("gan".into(), terms.gan));
            scalars.push(("gan_weight".into(), terms.weight));
            self.reconstruction = Some(reconstruction.detach());
        }
        Ok(scalars.iter().fold(StepLoss::new(total), |loss, (name, value)| loss.with(name, value)))
    }
}

impl Objective for TokenizerObjective {
    type Batch = Batch;

    fn parts(&self) -> Vec<Part<'_>> {
        let mut parts = vec![Part::new("tokenizer", &self.variables)];
        if let Some((_, variables)) = &self.adversary {
            parts.push(Part::new("discriminator", variables).without_ema());
        }
        parts
    }

    fn loss(&mut self, part: usize, batch: &Batch, step: u64) -> video_core::Result<StepLoss> {
        let video = batch.video.to_device(self.variables.device());
        if part == 0 {
            return self.generator_loss(&video, step);
        }
        let (Some((adversary, _)), Some(reconstruction)) = (&mut self.adversary, self.reconstruction.take())
        else {
            let expected = "the tokenizer's step first";
            return Err(video_core::Error::input(
                "discriminator step",
                "no reconstruction of this step",
                expected,
            ));
        };
        let terms = adversary.discriminator_terms(&video, &reconstruction, step)?;
        let loss = StepLoss::new(terms.total).with("gan", &terms.gan).with("lecam", &terms.lecam);
        Ok(match terms.gradient_penalty {
            Some(penalty) => loss.with("gradient_penalty", &penalty),
            None => loss,
        })
    }

    fn active(&self, part: usize, step: u64) -> bool {
        part == 0 || self.adversary.as_ref().is_some_and(|(adversary, _)| adversary.active(step))
    }
}

/// LPIPS with the weights that a config names.
///
/// # Errors
/// An unknown net, missing or misfitting weights.
pub fn load_lpips(config: &PerceptualConfig, device: tch::Device) -> Result<Lpips> {
    Ok(Lpips::load(config.net, Path::new(&config.backbone), Path::new(&config.heads), device)?)
}

/// Mean LPIPS over the frames of videos `[B, 3, T, H, W]`, 0-d.
///
/// # Errors
/// Frames smaller than the net takes.
pub fn lpips_of_video(lpips: &Lpips, ours: &Tensor, theirs: &Tensor) -> video_core::Result<Tensor> {
    let frames = |video: &Tensor| {
        let s = video.size();
        video.permute([0, 2, 1, 3, 4]).reshape([s[0] * s[2], s[1], s[3], s[4]])
    };
    Ok(lpips.distance(&frames(ours), &frames(theirs))?.mean(Kind::Float))
}
