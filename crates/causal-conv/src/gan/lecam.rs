//! LeCAM: keeps the discriminator's logits near moving averages of those of the other kind (Tseng et al., arXiv
//! 2104.03310).

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn, no_grad};
use video_core::{Error, Result};

use super::losses::{at_least_float, check_logits, mean};

/// When the averages are updated and what the term is taken of, in which published code differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LecamRule {
    /// The mean logits against the averages of the steps before: MAGVIT, MAGVIT-v2.
    #[default]
    Magvit,
    /// The mean logits against the averages that hold them already: O2-MAGVIT2.
    O2Magvit2,
    /// Each logit against the averages that hold them already: Open-MAGVIT2, VidTok.
    OpenMagvit2,
}

/// The regularizer in a config.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LecamConfig {
    /// Its weight in the discriminator's loss; 0: the averages are kept, and no more.
    pub weight: f64,
    /// Share of the averages that stays at each step.
    pub decay: f64,
    /// Of what the term is taken.
    pub rule: LecamRule,
}

impl Default for LecamConfig {
    /// The paper's.
    fn default() -> Self {
        Self { weight: 0.001, decay: 0.999, rule: LecamRule::Magvit }
    }
}

impl LecamConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        super::not_negative("weight", self.weight)?;
        if !(0.0..=1.0).contains(&self.decay) {
            return Err(Error::config("decay", self.decay, "0 to 1"));
        }
        Ok(())
    }
}

/// The moving averages of the logits, and the term mean(relu(r − f̄)²) + mean(relu(r̄ − f)²).
///
/// Variables: `real` and `fake`, 0-d, zero at first, not trained; a checkpoint of the discriminator holds them.
#[derive(Debug)]
pub struct Lecam {
    config: LecamConfig,
    real: Tensor,
    fake: Tensor,
}

impl Lecam {
    /// With averages of zero.
    ///
    /// # Errors
    /// A field of the config is out of range.
    pub fn new(path: &nn::Path, config: LecamConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { config, real: path.zeros_no_train("real", &[]), fake: path.zeros_no_train("fake", &[]) })
    }

    /// The term of one step's logits `[N, ...]`, 0-d, not weighted. The averages take these logits in.
    ///
    /// # Errors
    /// Logits without axes or without elements.
    pub fn step(&mut self, real: &Tensor, fake: &Tensor) -> Result<Tensor> {
        check_logits("real logits", real)?;
        check_logits("fake logits", fake)?;
        let (real, fake) = (at_least_float(real), at_least_float(fake));
        let before = self.copies();
        self.update(&real, &fake);
        let [real_average, fake_average] = match self.config.rule {
            LecamRule::Magvit => before,
            LecamRule::O2Magvit2 | LecamRule::OpenMagvit2 => self.copies(),
        };
        let [real, fake] = match self.config.rule {
            LecamRule::OpenMagvit2 => [real, fake],
            LecamRule::Magvit | LecamRule::O2Magvit2 => [mean(&real), mean(&fake)],
        };
        Ok(mean(&(real - fake_average).relu().square()) + mean(&(real_average - fake).relu().square()))
    }

    /// The averages of real and of generated samples' logits.
    pub fn averages(&self) -> [&Tensor; 2] {
        [&self.real, &self.fake]
    }

    fn update(&mut self, real: &Tensor, fake: &Tensor) {
        let decay = self.config.decay;
        no_grad(|| {
            for (average, logits) in [(&mut self.real, real), (&mut self.fake, fake)] {
                let next = &*average * decay + logits.mean(Kind::Float) * (1.0 - decay);
                average.copy_(&next);
            }
        });
    }

    /// The averages as they are now, whatever becomes of the variables.
    fn copies(&self) -> [Tensor; 2] {
        [self.real.copy(), self.fake.copy()]
    }
}
