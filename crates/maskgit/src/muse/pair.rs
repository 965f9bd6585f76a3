//! Muse's two stages as one generator: a base model on a coarse grid, and a super-resolution model on a finer grid of the same
//! codes.

use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};
use video_core::{
    Condition, ConditionKind, Error, GridShape, Result, SampleOptions, TokenGenerator, TokenGrid,
};

use super::generate::MuseDecoded;
use super::generator::{Muse, MuseGeneratorConfig};

/// Configuration of [`MusePair`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MusePairConfig {
    /// Makes the coarse grid. Published: 24 steps.
    pub base: MuseGeneratorConfig,
    /// Makes the fine grid; its `low_resolution` is the base's grid. Published: 8 steps.
    pub super_resolution: MuseGeneratorConfig,
}

impl MusePairConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range, or that differs between the two.
    pub fn validate(&self) -> Result<()> {
        self.base.validate().map_err(|error| error.within("base"))?;
        self.super_resolution.validate().map_err(|error| error.within("super_resolution"))?;
        if self.base.low_resolution.is_some() {
            return Err(Error::config("base.low_resolution", self.base.low_resolution, "none"));
        }
        let (given, made) = (self.super_resolution.low_resolution, self.base.grid);
        if given != Some(made) {
            let expected = format!("{made:?}, the base's grid");
            return Err(Error::config("super_resolution.low_resolution", given, expected));
        }
        let (base, fine) = (&self.base.transformer, &self.super_resolution.transformer);
        for (field, ours, theirs) in [
            ("super_resolution.transformer.num_tokens", fine.num_tokens, base.num_tokens),
            ("super_resolution.transformer.text_dim", fine.text_dim, base.text_dim),
        ] {
            if ours != theirs {
                return Err(Error::config(field, ours, format!("{theirs}, as the base has")));
            }
        }
        Ok(())
    }
}

/// Text to tokens in two stages. Variables under `base` and `super_resolution`.
///
/// It is trained on the tokens of the same clips at both resolutions ([`MusePair::losses`]); the two share no weights, so that
/// their losses can be added.
#[derive(Debug)]
pub struct MusePair {
    base: Muse,
    super_resolution: Muse,
}

impl MusePair {
    /// Builds it.
    ///
    /// # Errors
    /// The config is invalid.
    pub fn new(path: &nn::Path, config: &MusePairConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            base: Muse::new(&(path / "base"), &config.base)?,
            super_resolution: Muse::new(&(path / "super_resolution"), &config.super_resolution)?,
        })
    }

    /// The first stage.
    pub fn base(&self) -> &Muse {
        &self.base
    }

    /// The second stage.
    pub fn super_resolution(&self) -> &Muse {
        &self.super_resolution
    }

    /// The losses of the base and of super-resolution, 0-d, nats per masked token.
    ///
    /// # Errors
    /// As [`TokenGenerator::loss`], for either grid.
    pub fn losses(
        &self,
        coarse: &TokenGrid,
        fine: &TokenGrid,
        condition: &Condition,
        seed: u64,
    ) -> Result<[Tensor; 2]> {
        let base = self.base.loss(coarse, condition, seed)?;
        // Another stream of draws than the base's.
        let above = self.super_resolution.loss_above(fine, Some(coarse), condition, seed ^ 1 << 63)?;
        Ok([base, above])
    }

    /// Draws the coarse grid and the fine one above it.
    ///
    /// # Errors
    /// As [`TokenGenerator::sample`].
    pub fn sample_both(&self, condition: &Condition, options: &SampleOptions) -> Result<[MuseDecoded; 2]> {
        let coarse = self.base.sample_above(None, condition, options)?;
        let GridShape { frames, height, width } = self.base.config().grid;
        let grid = TokenGrid::new(coarse.ids.view([options.batch, frames, height, width]))?;
        let options = SampleOptions { seed: options.seed ^ 1 << 63, ..options.clone() };
        let fine = self.super_resolution.sample_above(Some(&grid), condition, &options)?;
        Ok([coarse, fine])
    }
}

impl TokenGenerator for MusePair {
    /// Refuses: it takes the tokens of two grids, see [`MusePair::losses`].
    fn loss(&self, _tokens: &TokenGrid, _condition: &Condition, _seed: u64) -> Result<Tensor> {
        Err(Error::unsupported("Muse's pair", "learn from one grid", "it needs the coarse one, too: losses"))
    }

    fn sample(&self, condition: &Condition, shape: GridShape, options: &SampleOptions) -> Result<TokenGrid> {
        let GridShape { frames, height, width } = self.super_resolution.config().grid;
        if shape != self.super_resolution.config().grid {
            let expected = format!("{:?}, the grid that the model was built for", [frames, height, width]);
            let found = [shape.frames, shape.height, shape.width];
            return Err(Error::shape("token grid", &found, expected));
        }
        let [_, fine] = self.sample_both(condition, options)?;
        TokenGrid::new(fine.ids.view([options.batch, frames, height, width]))
    }

    fn serves(&self) -> &[ConditionKind] {
        self.base.serves()
    }

    fn vocabulary_size(&self) -> i64 {
        self.base.vocabulary_size()
    }
}
