//! Discriminator, losses and regularizers under one config.

use tch::{Tensor, nn};
use video_core::{Error, Result, VideoShape};

use super::losses::{at_least_float, mean};
use super::{
    Discriminator, GanConfig, Lecam, PenaltyKind, adaptive_weight, discriminator_loss, generator_loss,
    gradient_penalty,
};

/// The generator's side of one step.
#[derive(Debug)]
pub struct GeneratorTerms {
    /// What is added to the generator's other losses, 0-d: `weight` · `gan`.
    pub total: Tensor,
    /// The GAN loss itself, 0-d.
    pub gan: Tensor,
    /// The weight that it got, 0-d, without gradient.
    pub weight: Tensor,
}

/// The discriminator's side of one step.
#[derive(Debug)]
pub struct DiscriminatorTerms {
    /// What the discriminator minimises, 0-d: the sum of all terms, weighted.
    pub total: Tensor,
    /// The GAN loss, 0-d.
    pub gan: Tensor,
    /// The LeCAM term, 0-d, not weighted.
    pub lecam: Tensor,
    /// The gradient penalty, 0-d, not weighted; `None` where it is not due.
    pub gradient_penalty: Option<Tensor>,
    /// The mean logits of the real videos and of the others, 0-d, without gradient.
    pub mean_logits: [Tensor; 2],
}

/// All that adversarial training adds to a tokenizer.
///
/// Variables: those of the discriminator under `discriminator`, LeCAM's averages under `lecam`.
#[derive(Debug)]
pub struct Adversary {
    config: GanConfig,
    discriminator: Discriminator,
    lecam: Lecam,
}

impl Adversary {
    /// With fresh weights, for clips of `shape` in any number.
    ///
    /// # Errors
    /// A field of the config is out of range, or the frames are too small for the discriminator.
    pub fn new(path: &nn::Path, config: &GanConfig, shape: VideoShape) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            discriminator: Discriminator::new(&(path / "discriminator"), &config.discriminator, shape)
                .map_err(|error| error.within("discriminator"))?,
            lecam: Lecam::new(&(path / "lecam"), config.lecam)?,
            config: config.clone(),
        })
    }

    /// Whether generator and discriminator are adversaries at a step already ([`GanConfig::start_step`]).
    pub fn active(&self, step: u64) -> bool {
        step >= self.config.start_step
    }

    /// The network.
    pub fn discriminator(&self) -> &Discriminator {
        &self.discriminator
    }

    /// LeCAM's averages.
    pub fn lecam(&self) -> &Lecam {
        &self.lecam
    }

    /// What the generator minimises beside its other losses, given what it made, `[B, C, T, H, W]`, with gradients.
    /// `fidelity` (its reconstruction losses, 0-d) and `last_layer` (a weight of its last layer) are for
    /// [`GanConfig::adaptive`].
    ///
    /// # Errors
    /// A shape that the discriminator was not built for; an adaptive weight without gradients.
    pub fn generator_terms(
        &self,
        generated: &Tensor,
        fidelity: &Tensor,
        last_layer: &Tensor,
    ) -> Result<GeneratorTerms> {
        let config = &self.config;
        let logits = self.discriminator.forward(generated, true)?;
        let gan = generator_loss(config.generator_loss.unwrap_or(config.loss), config.convention, &logits)?;
        let weight = match config.adaptive {
            Some(rule) => adaptive_weight(rule, fidelity, &gan, last_layer)? * config.generator_weight,
            None => Tensor::full([], config.generator_weight, (gan.kind(), gan.device())),
        };
        Ok(GeneratorTerms { total: &gan * &weight, gan, weight })
    }

    /// What the discriminator minimises at a step, given real videos and generated ones, `[B, C, T, H, W]`; no gradient
    /// reaches what generated them.
    ///
    /// # Errors
    /// A shape that the discriminator was not built for; a gradient penalty where gradients are off.
    pub fn discriminator_terms(
        &mut self,
        real: &Tensor,
        generated: &Tensor,
        step: u64,
    ) -> Result<DiscriminatorTerms> {
        let penalty = self.config.gradient_penalty;
        let due = penalty.due(step);
        let both = penalty.kind == PenaltyKind::Norm;
        let real = real.detach().set_requires_grad(due);
        let generated = generated.detach().set_requires_grad(due && both);
        if real.size() != generated.size() {
            let expected = format!("that of the real video, {:?}", real.size());
            return Err(Error::shape("generated video", &generated.size(), expected));
        }
        let real_logits = self.discriminator.forward(&real, true)?;
        let logits = self.discriminator.forward(&generated, true)?;
        let gan = discriminator_loss(self.config.loss, self.config.convention, &real_logits, &logits)?;
        let lecam = self.lecam.step(&real_logits, &logits)?;
        let mut total = &gan + &lecam * self.config.lecam.weight;
        let mut penalties = None;
        if due {
            let mut term = gradient_penalty(&penalty, &real, &real_logits)?;
            if both {
                term += gradient_penalty(&penalty, &generated, &logits)?;
            }
            total += &term * penalty.weight;
            penalties = Some(term);
        }
        let mean_logits = [real_logits, logits].map(|logits| mean(&at_least_float(&logits)).detach());
        Ok(DiscriminatorTerms { total, gan, lecam, gradient_penalty: penalties, mean_logits })
    }
}
