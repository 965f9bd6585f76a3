//! The transformer (arXiv 2404.02905, section 4; its code where the paper differs).

mod attention;
mod block;
mod config;

use std::cell::OnceCell;

use layers::{KvCache, Linear};
use tch::nn::{self, Init};
use tch::{Device, Kind, Tensor};
use video_core::{Error, Result};

pub use attention::{Attend, SelfAttention};
pub use block::{AdaLnBlock, AdaLnHead, Modulation};
pub use config::{InitConfig, VarConfig};

use crate::quantizer::check_vocabulary;
use crate::scales::{Pyramid, block_causal_mask};

/// A linear layer whose weights start normal with a standard deviation, its biases at 0.
pub(crate) fn linear(path: &nn::Path, inputs: i64, outputs: i64, stdev: f64) -> Linear {
    let weight = Init::Randn { mean: 0.0, stdev };
    Linear::with_init(path, inputs, outputs, weight, Some(Init::Const(0.0)))
}

/// What a batch's classes make of every block and the head.
#[derive(Debug)]
pub(crate) struct Conditioning {
    /// Class embeddings `[B, C]`.
    pub class: Tensor,
    modulations: Vec<Modulation>,
}

/// The transformer. Position i of its output predicts the token of position i: what goes in there is not a token but the sum
/// of all coarser scales, at this scale's size.
///
/// Variables, as published: `word_embed`, `class_emb` (the last row stands for no class), `pos_start`, `pos_1LC`,
/// `lvl_embed`, `shared_ada_lin.1` where modulations are shared, `blocks.{i}` (see [`AdaLnBlock`]), and those of
/// [`AdaLnHead`].
#[derive(Debug)]
pub struct Var {
    config: VarConfig,
    pyramid: Pyramid,
    word_embed: Linear,
    class_emb: Tensor,
    pos_start: Tensor,
    pos_1lc: Tensor,
    lvl_embed: Tensor,
    shared_ada_lin: Option<Linear>,
    blocks: Vec<AdaLnBlock>,
    head: AdaLnHead,
    /// Made when it is first needed, then shared by all blocks and steps. Sampling never needs it.
    mask: OnceCell<Tensor>,
}

impl Var {
    /// With fresh weights.
    ///
    /// # Errors
    /// A field of the config is out of range.
    pub fn new(path: &nn::Path, config: &VarConfig) -> Result<Self> {
        config.validate()?;
        let (width, std) = (config.embed_dim, config.std());
        let table = |path: nn::Path, rows: i64, stdev: f64| {
            path.var("weight", &[rows, width], Init::Randn { mean: 0.0, stdev })
        };
        let positions = |name: &str, length: i64| {
            path.var(name, &[1, length, width], Init::Randn { mean: 0.0, stdev: config.position_std() })
        };
        let pyramid = config.pyramid()?;
        let block = |index: i64| AdaLnBlock::new(&(path / "blocks" / index), config, index);
        Ok(Self {
            word_embed: linear(&(path / "word_embed"), config.z_channels, width, std),
            class_emb: table(path / "class_emb", config.num_classes + 1, std),
            pos_start: positions("pos_start", pyramid.lengths()[0]),
            pos_1lc: positions("pos_1LC", pyramid.tokens()),
            lvl_embed: table(path / "lvl_embed", pyramid.len() as i64, std),
            shared_ada_lin: config
                .shared_aln
                .then(|| linear(&(path / "shared_ada_lin" / 1), width, 6 * width, std)),
            blocks: (0..config.depth).map(block).collect(),
            head: AdaLnHead::new(path, config),
            mask: OnceCell::new(),
            pyramid,
            config: config.clone(),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &VarConfig {
        &self.config
    }

    /// Its scales.
    pub fn pyramid(&self) -> &Pyramid {
        &self.pyramid
    }

    /// Where its weights are.
    pub fn device(&self) -> Device {
        self.class_emb.device()
    }

    /// The class that stands for none: as many as there are classes.
    pub fn no_class(&self) -> i64 {
        self.config.num_classes
    }

    /// Classes `[B]` with those replaced by none whose uniform draw `[B]` is below the drop rate.
    pub fn drop_classes(&self, classes: &Tensor, draws: &Tensor) -> Tensor {
        classes.masked_fill(&draws.lt(self.config.cond_drop_rate), self.no_class())
    }

    /// Logits `[B, L', V]` of all positions of the first `scales` scales, taught: `classes` int64 `[B]`, where the number of
    /// classes stands for none, and the inputs `[B, L' − l₀, z]` of [`MultiScaleVq::var_input`](crate::MultiScaleVq::var_input).
    ///
    /// In `train` residual branches are dropped; classes never are, see [`Var::drop_classes`].
    ///
    /// # Errors
    /// A class out of range; inputs of another shape; more scales than there are.
    pub fn forward(&self, classes: &Tensor, inputs: &Tensor, scales: usize, train: bool) -> Result<Tensor> {
        self.check_classes(classes)?;
        if !(1..=self.pyramid.len()).contains(&scales) {
            let expected = format!("1 to {}", self.pyramid.len());
            return Err(Error::input("scales", format!("{scales} scales"), expected));
        }
        let (start, length) = (self.pyramid.lengths()[0], self.pyramid.tokens_of(scales));
        let expected = [classes.size()[0], length - start, self.config.z_channels];
        if inputs.size() != expected {
            return Err(Error::shape("inputs", &inputs.size(), format!("{expected:?}")));
        }
        let condition = self.conditioning(classes);
        let rest = self.word_embed.forward(inputs) + self.places(start, length - start);
        let x = Tensor::cat(&[self.start(&condition), rest], 1);
        let mask = self.mask.get_or_init(|| block_causal_mask(&self.pyramid.lengths(), self.device()));
        let mask = mask.narrow(0, 0, length).narrow(1, 0, length);
        let h = self.run(x, &condition, &mask, train)?;
        Ok(self.logits(&h, &condition))
    }

    /// What classes `[B]` make of the network.
    pub(crate) fn conditioning(&self, classes: &Tensor) -> Conditioning {
        let class = self.class_emb.index_select(0, classes);
        let condition = match &self.shared_ada_lin {
            Some(shared) => shared.forward(&class.silu()).view([-1, 1, 6, self.config.embed_dim]),
            None => class.shallow_clone(),
        };
        let modulations = self.blocks.iter().map(|block| block.modulation(&condition)).collect();
        Conditioning { class, modulations }
    }

    /// Level and position embeddings of a range of positions, `[1, n, C]`.
    fn places(&self, start: i64, length: i64) -> Tensor {
        let levels = self.pyramid.levels(self.device()).narrow(0, start, length);
        self.lvl_embed.index_select(0, &levels).unsqueeze(0) + self.pos_1lc.narrow(1, start, length)
    }

    /// What goes in at the first scale, `[B, l₀, C]`.
    pub(crate) fn start(&self, condition: &Conditioning) -> Tensor {
        let places = self.places(0, self.pyramid.lengths()[0]);
        condition.class.unsqueeze(1) + &self.pos_start + places
    }

    /// What goes in at a later scale, `[B, n, C]`, for the sum so far at its size, `[B, n, z]`.
    pub(crate) fn embed_scale(&self, scale: usize, input: &Tensor) -> Tensor {
        let range = &self.pyramid.ranges()[scale];
        self.word_embed.forward(input) + self.places(range.start, range.end - range.start)
    }

    /// Codes `[.., z]` at the network's width.
    pub(crate) fn embed_codes(&self, codes: &Tensor) -> Tensor {
        self.word_embed.forward(codes)
    }

    /// All blocks over `[B, N, C]` with a mask `[N, N]`.
    pub(crate) fn run(
        &self,
        x: Tensor,
        condition: &Conditioning,
        mask: &Tensor,
        train: bool,
    ) -> Result<Tensor> {
        let blocks = self.blocks.iter().zip(&condition.modulations);
        blocks
            .into_iter()
            .try_fold(x, |x, (block, modulation)| block.forward(&x, modulation, Attend::Masked(mask), train))
    }

    /// All blocks over the next `[B, N, C]`, which see everything in the caches.
    pub(crate) fn run_cached(
        &self,
        x: Tensor,
        condition: &Conditioning,
        caches: &mut [KvCache],
    ) -> Result<Tensor> {
        let blocks = self.blocks.iter().zip(&condition.modulations).zip(caches);
        blocks.into_iter().try_fold(x, |x, ((block, modulation), cache)| {
            block.forward(&x, modulation, Attend::Cached(cache), false)
        })
    }

    /// One empty cache a block, for at most so many positions.
    pub(crate) fn caches(&self, positions: i64) -> Vec<KvCache> {
        self.blocks.iter().map(|_| KvCache::new(positions)).collect()
    }

    /// Logits `[B, N, V]` of what comes out of the blocks.
    pub(crate) fn logits(&self, h: &Tensor, condition: &Conditioning) -> Tensor {
        self.head.forward(h, &condition.class)
    }

    /// Refuses what are no classes, or none.
    pub(crate) fn check_classes(&self, classes: &Tensor) -> Result<()> {
        if classes.dim() != 1 || classes.numel() == 0 || classes.kind() != Kind::Int64 {
            return Err(Error::shape("classes", &classes.size(), "int64 [B]"));
        }
        check_vocabulary(classes, self.config.num_classes + 1).map_err(|_| {
            let problem = format!("{} to {}", classes.min().int64_value(&[]), classes.max().int64_value(&[]));
            Error::input("class", problem, format!("0 to {0}, or {0} for none", self.config.num_classes))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MultiScaleVq, MultiScaleVqConfig, VarGenerator, VarPrompt, VarSampling};

    #[test]
    fn sampling_makes_no_mask_and_training_one() {
        let quantizer = MultiScaleVqConfig {
            vocab_size: 8,
            z_channels: 4,
            v_patch_nums: vec![1, 2],
            ..MultiScaleVqConfig::default()
        };
        let config = VarConfig {
            vocab_size: 8,
            z_channels: 4,
            num_classes: 2,
            depth: 1,
            embed_dim: 8,
            num_heads: 2,
            patch_nums: vec![1, 2],
            ..VarConfig::default()
        };
        let codes = nn::VarStore::new(Device::Cpu);
        let variables = nn::VarStore::new(Device::Cpu);
        let quantizer = MultiScaleVq::new(&codes.root(), &quantizer).unwrap();
        let generator = VarGenerator::new(&variables.root(), &config, quantizer.frozen()).unwrap();
        let classes = Tensor::from_slice(&[1i64]);
        let sampled = generator
            .sample_pyramid(&classes, VarSampling::default(), &VarPrompt::default(), &mut |_| ())
            .unwrap();
        assert!(generator.model().mask.get().is_none());
        let ids = Tensor::cat(&sampled.ids, 1);
        let _ = generator.logits(&ids, &classes, 2, true).unwrap();
        assert_eq!(generator.model().mask.get().unwrap().size(), [5, 5]);
    }
}
