//! The multi-scale residual quantizer (arXiv 2404.02905, section 3.3): each scale codes what the coarser ones left over,
//! all with one codebook.

mod config;
mod usage;

use tch::nn::{self, Init};
use tch::{Kind, Tensor, no_grad};
use video_core::{Error, GridShape, Result};

pub use config::MultiScaleVqConfig;

use crate::phi::PhiTable;
use crate::resample::{area, enlarge, grid_of};
use crate::scales::Pyramid;
use usage::Usage;

/// What [`MultiScaleVq::encode`] gives, scale by scale.
#[derive(Debug)]
pub struct Encoded {
    /// Ids of each scale, int64 `[B, t·h·w]`.
    pub ids: Vec<Tensor>,
    /// The sum of all scales up to each, `[B, z, T, H, W]`.
    pub f_hat: Vec<Tensor>,
}

/// What [`MultiScaleVq::train`] gives.
#[derive(Debug)]
pub struct TrainQuantized {
    /// `[B, z, T, H, W]`: the value of the sum of all scales, the gradient of the features.
    pub f_hat: Tensor,
    /// The mean over the scales of β |sg(f̂) − f|² + |f̂ − sg(f)|², 0-d.
    pub vq_loss: Tensor,
    /// Ids of each scale, int64 `[B, t·h·w]`.
    pub ids: Vec<Tensor>,
}

/// Residual quantization over scales with one codebook. Features are `[B, z, T, H, W]`, of an image with T = 1.
///
/// Variables: `embedding.weight` `[V, z]`; those of φ under `quant_resi`: `qresi` of a single one, `qresi_ls.{j}` of partly
/// shared ones, `{j}` of one a scale; and not trained, `ema_vocab_hit_SV` `[S, V]` and `record_hit`, how often codes are
/// used.
#[derive(Debug)]
pub struct MultiScaleVq {
    config: MultiScaleVqConfig,
    pyramid: Pyramid,
    embedding: Tensor,
    phis: PhiTable,
    usage: Usage,
}

impl MultiScaleVq {
    /// With fresh weights; codes start as `eini` says.
    ///
    /// # Errors
    /// A field of the config is out of range.
    pub fn new(path: &nn::Path, config: &MultiScaleVqConfig) -> Result<Self> {
        config.validate()?;
        let (size, channels) = (config.vocab_size, config.z_channels);
        let bound = config.eini.abs() / size as f64;
        let init = match config.eini {
            eini if eini < 0.0 => Init::Uniform { lo: -bound, up: bound },
            eini => Init::Randn { mean: 0.0, stdev: if eini > 0.0 { eini } else { 1.0 } },
        };
        Ok(Self {
            pyramid: config.pyramid()?,
            embedding: (path / "embedding").var("weight", &[size, channels], init),
            phis: PhiTable::new(&(path / "quant_resi"), channels, config.quant_resi, config.sharing()),
            usage: Usage::new(path, config.v_patch_nums.len() as i64, size),
            config: config.clone(),
        })
    }

    /// The same weights, which no gradient reaches: what a generator needs of a trained tokenizer. They share memory.
    #[must_use]
    pub fn frozen(&self) -> Self {
        Self {
            config: self.config.clone(),
            pyramid: self.pyramid.clone(),
            embedding: self.embedding.detach(),
            phis: self.phis.frozen(),
            usage: self.usage.shallow_clone(),
        }
    }

    /// Its configuration.
    pub fn config(&self) -> &MultiScaleVqConfig {
        &self.config
    }

    /// The scales of an image.
    pub fn pyramid(&self) -> &Pyramid {
        &self.pyramid
    }

    /// The codebook `[V, z]`.
    pub fn embedding(&self) -> &Tensor {
        &self.embedding
    }

    /// Quantizes features `[B, z, T, H, W]` at the first `scales` of a pyramid, without gradients.
    ///
    /// # Errors
    /// The pyramid does not end at the features' size, or has fewer scales; another number of channels.
    pub fn encode(&self, f: &Tensor, pyramid: &Pyramid, scales: usize) -> Result<Encoded> {
        self.check_features(f, pyramid)?;
        check_scales(scales, pyramid)?;
        no_grad(|| {
            let mut encoded = Encoded { ids: Vec::new(), f_hat: Vec::new() };
            let (mut rest, mut f_hat) = (f.copy(), f.zeros_like());
            for scale in 0..scales {
                let (ids, h) = self.code(&rest, pyramid, scale);
                rest -= &h;
                f_hat = &f_hat + h;
                encoded.ids.push(ids);
                encoded.f_hat.push(f_hat.shallow_clone());
            }
            Ok(encoded)
        })
    }

    /// One scale of a residual: its ids `[B, n]` and what it adds, `[B, z, T, H, W]`, with gradients for the weights.
    fn code(&self, rest: &Tensor, pyramid: &Pyramid, scale: usize) -> (Tensor, Tensor) {
        let shape = pyramid.scales()[scale];
        let small = area(&rest.detach(), shape);
        let ids = self.nearest(&small);
        let h = self.lookup(&ids, shape);
        (ids, self.addend(&h, pyramid, scale))
    }

    /// The ids `[B, t·h·w]` of the codes nearest to `[B, z, t, h, w]`.
    fn nearest(&self, small: &Tensor) -> Tensor {
        let batch = small.size()[0];
        let rows = small.permute([0, 2, 3, 4, 1]).reshape([-1, self.config.z_channels]);
        let codes = self.embedding.detach();
        let ids = if self.config.using_znorm {
            normalize(&rows).matmul(&normalize(&codes).tr()).argmax(1, false)
        } else {
            let distances = squared_norms(&rows) + squared_norms(&codes).tr();
            distances.addmm(&rows, &(codes.tr() * -2.0)).argmin(1, false)
        };
        ids.view([batch, -1])
    }

    /// Codes `[B, z, t, h, w]` of ids `[B, t·h·w]`.
    pub(crate) fn lookup(&self, ids: &Tensor, shape: GridShape) -> Tensor {
        let GridShape { frames, height, width } = shape;
        let codes = Tensor::embedding(&self.embedding, ids, -1, false, false);
        codes.transpose(1, 2).reshape([ids.size()[0], -1, frames, height, width])
    }

    /// What codes `[B, z, t, h, w]` of one scale add to the sum: φ of them at the full size.
    fn addend(&self, h: &Tensor, pyramid: &Pyramid, scale: usize) -> Tensor {
        self.phis.of(scale, pyramid.len()).forward(&enlarge(h, pyramid.last()))
    }

    /// Codes `[B, z, t, h, w]` of each scale's ids `[B, t·h·w]`.
    ///
    /// # Errors
    /// More maps than scales, a map of another size, an id outside the codebook.
    pub fn embed(&self, ids: &[Tensor], pyramid: &Pyramid) -> Result<Vec<Tensor>> {
        check_scales(ids.len(), pyramid)?;
        let embedded = ids.iter().zip(pyramid.scales()).map(|(ids, &shape)| {
            self.check_ids(ids, shape)?;
            Ok(self.lookup(ids, shape))
        });
        embedded.collect()
    }

    /// The running sums `[B, z, T, H, W]` of each scale's codes `[B, z, t, h, w]`.
    ///
    /// # Errors
    /// As many maps as scales are needed, each of its scale's size.
    pub fn f_hats(&self, h: &[Tensor], pyramid: &Pyramid) -> Result<Vec<Tensor>> {
        self.check_maps(h, pyramid)?;
        let mut f_hat = Tensor::zeros_like(&enlarge(&h[0], pyramid.last()));
        let sum = |(scale, h): (usize, &Tensor)| {
            f_hat = &f_hat + self.addend(h, pyramid, scale);
            f_hat.shallow_clone()
        };
        Ok(h.iter().enumerate().map(sum).collect())
    }

    /// As [`MultiScaleVq::f_hats`], but each sum at its scale's own size, to which the sum before is enlarged.
    ///
    /// # Errors
    /// As [`MultiScaleVq::f_hats`].
    pub fn f_hats_own_size(&self, h: &[Tensor], pyramid: &Pyramid) -> Result<Vec<Tensor>> {
        self.check_maps(h, pyramid)?;
        let mut f_hat = h[0].zeros_like();
        let sum = |(scale, h): (usize, &Tensor)| {
            f_hat = enlarge(&f_hat, pyramid.scales()[scale]) + self.phis.of(scale, pyramid.len()).forward(h);
            f_hat.shallow_clone()
        };
        Ok(h.iter().enumerate().map(sum).collect())
    }

    /// The inputs of a transformer that is taught with the given ids: the running sum before each scale but the first, at that
    /// scale's size, `[B, L − l₀, z]`. Of `scales` scales; as many maps but one are read.
    ///
    /// # Errors
    /// As [`MultiScaleVq::embed`].
    pub fn var_input(&self, ids: &[Tensor], pyramid: &Pyramid, scales: usize) -> Result<Tensor> {
        check_scales(scales, pyramid)?;
        let needed = ids.get(..scales - 1).ok_or_else(|| {
            Error::input("token maps", format!("{} maps", ids.len()), format!("at least {}", scales - 1))
        })?;
        let Some(first) = needed.first() else {
            let batch = ids.first().map_or(1, |ids| ids.size()[0]);
            let options = (self.embedding.kind(), self.embedding.device());
            return Ok(Tensor::empty([batch, 0, self.config.z_channels], options));
        };
        let maps = self.embed(needed, pyramid)?;
        let last = pyramid.last();
        let size = [first.size()[0], self.config.z_channels, last.frames, last.height, last.width];
        let mut f_hat = Tensor::zeros(size, (self.embedding.kind(), self.embedding.device()));
        let mut inputs = Vec::with_capacity(maps.len());
        for (scale, h) in maps.iter().enumerate() {
            let next;
            (f_hat, next) = self.next_input(scale, pyramid, &f_hat, h);
            inputs.push(as_sequence(&next));
        }
        Ok(Tensor::cat(&inputs, 1))
    }

    /// The running sum `[B, z, T, H, W]` with scale k's codes `[B, z, t, h, w]` added, and that sum at the next scale's size;
    /// behind the last scale, the sum itself.
    pub fn next_input(
        &self,
        scale: usize,
        pyramid: &Pyramid,
        f_hat: &Tensor,
        h: &Tensor,
    ) -> (Tensor, Tensor) {
        let f_hat = f_hat + self.addend(h, pyramid, scale);
        let next = match pyramid.scales().get(scale + 1) {
            Some(&shape) => area(&f_hat, shape),
            None => f_hat.shallow_clone(),
        };
        (f_hat, next)
    }

    /// A training step over features `[B, z, T, H, W]`. Residuals and ids come from detached values; the codebook and φ learn
    /// from the loss.
    ///
    /// With `record_hits` the use of codes is counted, of an image's pyramid.
    ///
    /// # Errors
    /// As [`MultiScaleVq::encode`].
    pub fn train(&self, f: &Tensor, pyramid: &Pyramid, record_hits: bool) -> Result<TrainQuantized> {
        self.check_features(f, pyramid)?;
        let target = f.detach();
        let (mut rest, mut f_hat) = (target.copy(), target.zeros_like());
        let mut vq_loss = Tensor::zeros([], (f.kind(), f.device()));
        let mut ids = Vec::with_capacity(pyramid.len());
        for scale in 0..pyramid.len() {
            let (chosen, h) = self.code(&rest, pyramid, scale);
            rest -= h.detach();
            f_hat = &f_hat + h;
            let commitment = f.mse_loss(&f_hat.detach(), tch::Reduction::Mean);
            vq_loss = vq_loss + commitment * self.config.beta + f_hat.mse_loss(&target, tch::Reduction::Mean);
            if record_hits && *pyramid == self.pyramid {
                self.usage.record(scale as i64, &chosen);
            }
            ids.push(chosen);
        }
        let f_hat = (f_hat.detach() - &target) + f;
        Ok(TrainQuantized { f_hat, vq_loss: vq_loss / pyramid.len() as f64, ids })
    }

    /// The share of codes in use at each scale, in percent, `[S]`: those whose average hits in a step reach 8 % of what each
    /// code would get of `positions` (B·T·H·W of the features, of all `processes` together) if all were used alike.
    pub fn usages(&self, positions: i64, processes: i64) -> Tensor {
        let margin = (processes * positions) as f64 / self.config.vocab_size as f64 * 0.08;
        self.usage.percent(margin)
    }

    /// The average hits of each code at each scale, `[S, V]`, and how many scales were counted so far.
    pub fn hits(&self) -> (&Tensor, i64) {
        self.usage.state()
    }

    fn check_features(&self, f: &Tensor, pyramid: &Pyramid) -> Result<()> {
        let size = f.size();
        let z = self.config.z_channels;
        if size.len() != 5 || size[1] != z || size.contains(&0) {
            return Err(Error::shape("features", &size, format!("[B, {z}, T, H, W] with no empty axis")));
        }
        if grid_of(f) != pyramid.last() {
            let given: Vec<[i64; 3]> =
                pyramid.scales().iter().map(|s| [s.frames, s.height, s.width]).collect();
            let expected = format!("scales (t, h, w) that end at the latent's size {:?}", &size[2..]);
            return Err(Error::config("patch_nums", given, expected));
        }
        Ok(())
    }

    fn check_ids(&self, ids: &Tensor, shape: GridShape) -> Result<()> {
        if ids.dim() != 2 || ids.size()[1] != shape.tokens() || ids.kind() != Kind::Int64 {
            let expected = format!("int64 [B, {}]", shape.tokens());
            return Err(Error::shape("ids of a scale", &ids.size(), expected));
        }
        check_vocabulary(ids, self.config.vocab_size)
    }

    fn check_maps(&self, h: &[Tensor], pyramid: &Pyramid) -> Result<()> {
        if h.len() != pyramid.len() {
            let expected = format!("{}, one a scale", pyramid.len());
            return Err(Error::input("code maps", format!("{} maps", h.len()), expected));
        }
        for (h, scale) in h.iter().zip(pyramid.scales()) {
            let expected = [self.config.z_channels, scale.frames, scale.height, scale.width];
            if h.dim() != 5 || h.size()[1..] != expected {
                return Err(Error::shape("code map", &h.size(), format!("[B, {expected:?}]")));
            }
        }
        Ok(())
    }
}

/// Refuses ids outside the vocabulary.
pub(crate) fn check_vocabulary(ids: &Tensor, size: i64) -> Result<()> {
    if ids.numel() == 0 {
        return Ok(());
    }
    for id in [ids.min(), ids.max()] {
        let id = id.int64_value(&[]);
        if !(0..size).contains(&id) {
            return Err(Error::input("token ids", format!("id {id}"), format!("ids in 0..{size}")));
        }
    }
    Ok(())
}

fn check_scales(scales: usize, pyramid: &Pyramid) -> Result<()> {
    if (1..=pyramid.len()).contains(&scales) {
        return Ok(());
    }
    Err(Error::input("scales", format!("{scales} scales"), format!("1 to {}", pyramid.len())))
}

/// `[B, z, t, h, w]` as `[B, t·h·w, z]`.
pub(crate) fn as_sequence(x: &Tensor) -> Tensor {
    x.flatten(2, -1).transpose(1, 2)
}

fn normalize(rows: &Tensor) -> Tensor {
    rows / rows.norm_scalaropt_dim(2.0, [-1i64], true).clamp_min(1e-12)
}

fn squared_norms(rows: &Tensor) -> Tensor {
    rows.square().sum_dim_intlist([-1i64].as_slice(), true, rows.kind())
}
