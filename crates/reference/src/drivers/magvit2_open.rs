//! Discriminators, GAN losses and Open-MAGVIT2 (entries `magvit2.blurpool3d`, `magvit2.discriminator3d`,
//! `magvit2.gan.*`, `magvit2.open.*`).

use causal_conv::gan::{
    AdaptiveRule, Adversary, DiscriminatorConfig, GanConfig, GanLoss, GradientPenalty, Lecam, LecamConfig,
    LecamRule, LossConvention, PenaltyKind, discriminator_loss, generator_loss, gradient_penalty,
};
use causal_conv::open_magvit2::{
    AdaptiveGroupNorm, Decoder, Encoder, OpenMagvit2, OpenMagvit2Config, ResBlock, ResBlockConfig, Upsampler,
};
use causal_conv::{
    BlurPool3d, PadMode, PatchDiscriminator, PatchDiscriminatorConfig, VideoDiscriminator,
    VideoDiscriminatorConfig,
};
use quantizers::bits::split_id;
use quantizers::{BitOrder, LfqConfig, QuantizerConfig};
use serde::Deserialize;
use tch::nn::Module;
use tch::{Device, Kind, Tensor, nn, no_grad};
use training::EmaConfig;
use video_core::{VideoShape, VideoTokenizer};

use super::Driver;
use super::magvit2::{Loaded, input};
use crate::case::{Case, CaseError, Outputs};
use crate::weights::{Weights, load_into};

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[
    ("magvit2.blurpool3d", blurpool3d),
    ("magvit2.discriminator3d", discriminator3d),
    ("magvit2.gan.discriminator_loss", gan_discriminator_loss),
    ("magvit2.gan.generator_loss", gan_generator_loss),
    ("magvit2.gan.lecam", lecam),
    ("magvit2.gan.gradient_penalty", penalty),
    ("magvit2.open.resblock", resblock),
    ("magvit2.open.upsampler", upsampler),
    ("magvit2.open.adaptive_group_norm", adaptive_group_norm),
    ("magvit2.open.encoder", encoder),
    ("magvit2.open.decoder", decoder),
    ("magvit2.open.tokenizer", tokenizer),
    ("magvit2.open.discriminator", patch_discriminator),
    ("magvit2.open.losses", losses),
    ("magvit2.open.ema", ema),
];

/// Our variables have the reference's names.
fn same(name: &str) -> Option<String> {
    Some(name.to_string())
}

fn unsupported(what: &str, value: &dyn std::fmt::Debug) -> CaseError {
    CaseError::Config(format!("{what} = {value:?}"))
}

/// Images `[B, C, H, W]` as videos of one frame.
fn as_video(images: &Tensor) -> Tensor {
    images.unsqueeze(2)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Blur {
    channels: i64,
    pad_type: String,
    filt_size: i64,
    stride: i64,
    input_shape: Vec<i64>,
}

fn blurpool3d(case: &Case) -> Result<Outputs, CaseError> {
    let Blur { channels, pad_type, filt_size, stride, input_shape } = case.config()?;
    let x = input(case, "x", &input_shape)?;
    if input_shape.get(1) != Some(&channels) {
        return Err(unsupported("channels", &channels));
    }
    let border = match pad_type.as_str() {
        "reflect" | "refl" => PadMode::Reflect,
        "replicate" | "repl" => PadMode::Replicate,
        "zero" => PadMode::Constant,
        other => return Err(unsupported("pad_type", &other)),
    };
    let mut outputs = Outputs::new();
    outputs.out("y", &BlurPool3d::new(filt_size, stride, border)?.forward(&x)?);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Discriminator3d {
    spatial_size: i64,
    num_frames: i64,
    filters: i64,
    channel_multipliers: Vec<i64>,
    penalty_cost: f64,
    input_shape: Vec<i64>,
}

fn discriminator3d(case: &Case) -> Result<Outputs, CaseError> {
    let config: Discriminator3d = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let shape = VideoShape {
        frames: config.num_frames,
        height: config.spatial_size,
        width: config.spatial_size,
        ..VideoShape::of(&x)?
    };
    let ours = VideoDiscriminatorConfig {
        filters: config.filters,
        channel_multipliers: config.channel_multipliers,
        ..VideoDiscriminatorConfig::default()
    };
    let loaded = Loaded::new(case, same, |path| VideoDiscriminator::new(path, &ours, shape))?;
    let x = x.copy().set_requires_grad(true);
    let y = loaded.model.forward(&x)?;
    let penalty =
        GradientPenalty { kind: PenaltyKind::R1Offset, weight: config.penalty_cost, ..GradientPenalty::OFF };
    let r1 = gradient_penalty(&penalty, &x, &y)? * penalty.weight;
    let mut outputs = loaded.outputs(case, &y)?;
    outputs.out("r1_penalty", &r1.reshape([1]));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Loss {
    variant: String,
    kind: GanLoss,
    shape: Vec<i64>,
}

impl Loss {
    fn convention(&self) -> Result<LossConvention, CaseError> {
        match self.variant.as_str() {
            "open" => Ok(LossConvention::OpenMagvit2),
            "lucid" | "magvit1" | "o2" => Ok(LossConvention::Magvit),
            other => Err(unsupported("variant", &other)),
        }
    }
}

fn gan_discriminator_loss(case: &Case) -> Result<Outputs, CaseError> {
    let config: Loss = case.config()?;
    let (real, fake) = (input(case, "real", &config.shape)?, input(case, "fake", &config.shape)?);
    let loss = discriminator_loss(config.kind, config.convention()?, &real, &fake)?;
    let mut outputs = Outputs::new();
    outputs.out("loss", &scalar_like(case, "loss", &loss)?);
    Ok(outputs)
}

fn gan_generator_loss(case: &Case) -> Result<Outputs, CaseError> {
    let config: Loss = case.config()?;
    let loss = generator_loss(config.kind, config.convention()?, &input(case, "fake", &config.shape)?)?;
    let mut outputs = Outputs::new();
    outputs.out("loss", &scalar_like(case, "loss", &loss)?);
    Ok(outputs)
}

/// A number in the shape, `[]` or `[1]`, that the case gives it.
fn scalar_like(case: &Case, name: &str, value: &Tensor) -> Result<Tensor, CaseError> {
    let shape = case.tensor(&format!("out/{name}"))?.size();
    Ok(if shape == [1] { value.reshape([1]) } else { value.shallow_clone() })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LecamCase {
    variant: String,
    decay: f64,
    shape: Vec<i64>,
}

fn lecam(case: &Case) -> Result<Outputs, CaseError> {
    let LecamCase { variant, decay, shape } = case.config()?;
    let rule = match variant.as_str() {
        "open" => LecamRule::OpenMagvit2,
        "magvit1" => LecamRule::Magvit,
        "o2" => LecamRule::O2Magvit2,
        other => return Err(unsupported("variant", &other)),
    };
    let (real, fake) = (input(case, "real", &shape)?, input(case, "fake", &shape)?);
    let variables = nn::VarStore::new(Device::Cpu);
    let mut lecam = Lecam::new(&variables.root(), LecamConfig { decay, rule, ..LecamConfig::default() })?;
    let mut series = [vec![], vec![], vec![]];
    for step in 0..shape.first().copied().unwrap_or(0) {
        series[0].push(lecam.step(&real.get(step), &fake.get(step))?);
        let [real_average, fake_average] = lecam.averages().map(Tensor::copy);
        series[1].push(real_average);
        series[2].push(fake_average);
    }
    let mut outputs = Outputs::new();
    for (name, values) in ["reg", "ema_real", "ema_fake"].into_iter().zip(&series) {
        outputs.out(name, &Tensor::stack(values, 0));
    }
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Penalty {
    variant: String,
    center: f64,
    cost: f64,
    batch: i64,
    size: i64,
}

/// The critic of the case is nobody's model: it stands here.
#[derive(Debug)]
struct Critic {
    c1: nn::Conv2D,
    c2: nn::Conv2D,
    fc: nn::Linear,
}

impl Critic {
    fn new(path: &nn::Path, size: i64) -> Self {
        let conv = |name: &str, inputs, outputs, stride| {
            let config = nn::ConvConfig { stride, padding: 1, ..Default::default() };
            nn::conv2d(path / name, inputs, outputs, 3, config)
        };
        let half = (size - 1) / 2 + 1;
        let fc = nn::linear(path / "fc", 5 * half * half, 1, Default::default());
        Self { c1: conv("c1", 3, 4, 1), c2: conv("c2", 4, 5, 2), fc }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let leaky = |x: Tensor| x.prelu(&Tensor::full([1], 0.1, (x.kind(), x.device())));
        let h = leaky(self.c2.forward(&leaky(self.c1.forward(x))));
        self.fc.forward(&h.flatten(1, -1))
    }
}

fn penalty(case: &Case) -> Result<Outputs, CaseError> {
    let Penalty { variant, center, cost, batch, size } = case.config()?;
    let x = input(case, "x", &[batch, 3, size, size])?.copy().set_requires_grad(true);
    // The reference applies its weight outside of lucid's function.
    let (kind, center, cost) = match variant.as_str() {
        "lucid" => (PenaltyKind::Norm, center, 1.0),
        "o2" => (PenaltyKind::R1Offset, 0.0, cost),
        "magvit1" => (PenaltyKind::R1, 0.0, cost),
        other => return Err(unsupported("variant", &other)),
    };
    let loaded = Loaded::new(case, same, |path| Ok(Critic::new(path, size)))?;
    let logits = loaded.model.forward(&x);
    let penalty = GradientPenalty { kind, center, ..GradientPenalty::OFF };
    let term = gradient_penalty(&penalty, &x, &logits)? * cost;
    let mut outputs = Outputs::new();
    outputs.out("logits", &logits).out("penalty", &scalar_like(case, "penalty", &term)?);
    term.backward();
    loaded.gradients(case, &mut outputs)?;
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    input_nc: i64,
    ndf: i64,
    n_layers: i64,
    train: bool,
    input_shape: Vec<i64>,
}

fn patch_discriminator(case: &Case) -> Result<Outputs, CaseError> {
    let config: Patch = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let ours = PatchDiscriminatorConfig { filters: config.ndf, num_layers: config.n_layers };
    let loaded = Loaded::new(case, same, |path| PatchDiscriminator::new(path, &ours, config.input_nc))?;
    let mut outputs = loaded.outputs(case, &loaded.model.forward(&as_video(&x), config.train)?)?;
    if config.train {
        outputs.out("running_mean_after", loaded.variable("main.3.running_mean")?);
        outputs.out("running_var_after", loaded.variable("main.3.running_var")?);
    }
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Losses {
    feat_ch: i64,
    disc_start: u64,
    disc_weight: f64,
    disc_factor: f64,
    gen_loss_weight: Option<f64>,
    lecam_loss_weight: f64,
    codebook_weight: f64,
    commit_weight: f64,
    codebook_enlarge_ratio: f64,
    codebook_enlarge_steps: f64,
    disc_ndf: i64,
    disc_num_layers: i64,
    disc_loss: String,
    global_step: u64,
    input_shape: Vec<i64>,
}

impl Losses {
    fn ours(&self) -> Result<GanConfig, CaseError> {
        let loss = match self.disc_loss.as_str() {
            "hinge" => GanLoss::Hinge,
            "vanilla" => GanLoss::Vanilla,
            "non_saturate" => GanLoss::NonSaturating,
            other => return Err(unsupported("disc_loss", &other)),
        };
        let open = GanConfig::open_magvit2();
        Ok(GanConfig {
            discriminator: DiscriminatorConfig::Patch2d(PatchDiscriminatorConfig {
                filters: self.disc_ndf,
                num_layers: self.disc_num_layers,
            }),
            loss,
            generator_weight: self.gen_loss_weight.unwrap_or(self.disc_weight),
            adaptive: self.gen_loss_weight.is_none().then_some(AdaptiveRule::OpenMagvit2),
            start_step: self.disc_start,
            lecam: LecamConfig { weight: self.lecam_loss_weight, ..open.lecam },
            ..open
        })
    }
}

fn losses(case: &Case) -> Result<Outputs, CaseError> {
    let config: Losses = case.config()?;
    let x = as_video(&input(case, "x", &config.input_shape)?);
    let variables = nn::VarStore::new(Device::Cpu);
    let path = variables.root();
    let conv = nn::ConvConfig { padding: 1, ..Default::default() };
    let last = nn::conv2d(&path / "last", config.feat_ch, x.size()[1], 3, conv);
    let mut adversary = Adversary::new(&path, &config.ours()?, VideoShape::of(&x)?)?;

    let ours = |name: &str| name.replace("loss.discriminator.", "discriminator.");
    let mut weights: Weights = case.weights().into_iter().map(|(name, w)| (ours(&name), w)).collect();
    for (average, name) in [("lecam.real", "ema_real"), ("lecam.fake", "ema_fake")] {
        weights.insert(average.into(), case.input(name)?.reshape([0i64; 0]));
    }
    load_into(&variables, &weights)?;

    // Before disc_start the reference computes all of it and multiplies it by zero.
    let disc_factor = if adversary.active(config.global_step) { config.disc_factor } else { 0.0 };
    let reported = if disc_factor == 0.0 { 0.0 } else { 1.0 };
    let reconstruction = as_video(&last.forward(&case.input("feat")?));
    let nll = (&x - &reconstruction).abs().mean(Kind::Float);
    let generator = adversary.generator_terms(&reconstruction, &nll, &last.ws)?;
    let left = (1.0 - config.global_step as f64 / config.codebook_enlarge_steps).max(0.0);
    let enlarged = 1.0 + config.codebook_enlarge_ratio.max(0.0) * left;
    let total = &nll
        + &generator.total * disc_factor
        + case.input("codebook_loss")? * (config.codebook_weight * enlarged)
        + case.input("commitment")? * config.commit_weight;
    let discriminator = adversary.discriminator_terms(&x, &reconstruction, config.global_step)?;
    let disc_total = &discriminator.total * disc_factor;

    let mut outputs = Outputs::new();
    outputs.out("recon", &reconstruction.squeeze_dim(2));
    let [ema_real, ema_fake] = adversary.lecam().averages();
    for (name, value) in [
        ("gen_total", &total),
        ("nll", &nll),
        ("g_raw", &generator.gan),
        ("d_weight", &(&generator.weight * reported)),
        ("disc_total", &disc_total),
        ("disc_gan", &discriminator.gan),
        ("lecam", &discriminator.lecam),
        ("ema_real_after", ema_real),
        ("ema_fake_after", ema_fake),
    ] {
        outputs.out(name, &scalar_like(case, name, value)?);
    }
    // The generator's step reaches the discriminator's variables, too: its own gradients are taken by themselves.
    let by_name = variables.variables();
    for name in case.gradient_names() {
        let of = if name.starts_with("last.") { &total } else { &disc_total };
        let variable = by_name.get(&ours(&name)).ok_or_else(|| CaseError::Missing(name.clone()))?;
        outputs.grad(&name, &Tensor::f_run_backward(&[of], &[variable], true, false)?[0]);
    }
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ema {
    n: i64,
    steps: i64,
    decay: f64,
    use_num_updates: bool,
}

fn ema(case: &Case) -> Result<Outputs, CaseError> {
    let Ema { n, steps, decay, use_num_updates } = case.config()?;
    let params = input(case, "p", &[steps, n])?;
    let shadow = [input(case, "p0", &[n])?.copy()];
    let config = EmaConfig { decay, warmup: use_num_updates };
    let mut series = Vec::new();
    for step in 0..steps {
        let weight = 1.0 - config.decay_at(step as u64 + 1);
        torch_ext::lerp_(&shadow, &[params.get(step)], weight).map_err(video_core::Error::from)?;
        series.push(shadow[0].copy());
    }
    let mut outputs = Outputs::new();
    outputs.out("shadow", &Tensor::stack(&series, 0));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Block {
    in_filters: i64,
    out_filters: i64,
    use_conv_shortcut: bool,
    use_agn: bool,
    num_groups: i64,
    input_shape: Vec<i64>,
}

fn resblock(case: &Case) -> Result<Outputs, CaseError> {
    let config: Block = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let ours = ResBlockConfig {
        conv_shortcut: config.use_conv_shortcut,
        first_norm: !config.use_agn,
        ..ResBlockConfig::new(config.in_filters, config.out_filters, config.num_groups)
    };
    let loaded = Loaded::new(case, same, |path| ResBlock::new(path, ours))?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Upsample {
    dim: i64,
    input_shape: Vec<i64>,
}

fn upsampler(case: &Case) -> Result<Outputs, CaseError> {
    let Upsample { dim, input_shape } = case.config()?;
    let x = input(case, "x", &input_shape)?;
    let loaded = Loaded::new(case, same, |path| Ok(Upsampler::new(path, dim)))?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdaptiveNorm {
    dim: i64,
    z_channels: i64,
    num_groups: i64,
    z_shape: Vec<i64>,
    input_shape: Vec<i64>,
}

fn adaptive_group_norm(case: &Case) -> Result<Outputs, CaseError> {
    let AdaptiveNorm { dim, z_channels, num_groups, z_shape, input_shape } = case.config()?;
    let (x, z) = (input(case, "x", &input_shape)?, input(case, "z", &z_shape)?);
    let loaded = Loaded::new(case, same, |path| AdaptiveGroupNorm::new(path, dim, z_channels, num_groups))?;
    loaded.outputs(case, &loaded.model.forward(&x, &z)?)
}

/// The reference's `ddconfig`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Network {
    ch: i64,
    out_ch: i64,
    in_channels: i64,
    num_res_blocks: i64,
    z_channels: i64,
    ch_mult: Vec<i64>,
    resolution: i64,
    #[serde(default)]
    double_z: bool,
    num_groups: i64,
    input_shape: Vec<i64>,
    token_factorization: Option<bool>,
    factorized_bits: Option<Vec<i64>>,
}

impl Network {
    fn ours(&self, bit_order: BitOrder) -> OpenMagvit2Config {
        let lfq = LfqConfig { bit_order, ..LfqConfig::with_bits(self.z_channels) };
        OpenMagvit2Config {
            ch: self.ch,
            out_ch: self.out_ch,
            in_channels: self.in_channels,
            num_res_blocks: self.num_res_blocks,
            z_channels: self.z_channels,
            ch_mult: self.ch_mult.clone(),
            resolution: self.resolution,
            double_z: self.double_z,
            adaptive_norm: true,
            num_groups: self.num_groups,
            quantizer: QuantizerConfig::Lfq(lfq),
        }
    }
}

fn encoder(case: &Case) -> Result<Outputs, CaseError> {
    let config: Network = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let loaded = Loaded::new(case, same, |path| Encoder::new(path, &config.ours(BitOrder::LsbFirst)))?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

fn decoder(case: &Case) -> Result<Outputs, CaseError> {
    let config: Network = case.config()?;
    let x = input(case, "x", &config.input_shape)?;
    let loaded = Loaded::new(case, same, |path| Decoder::new(path, &config.ours(BitOrder::LsbFirst)))?;
    loaded.outputs(case, &loaded.model.forward(&x)?)
}

fn tokenizer(case: &Case) -> Result<Outputs, CaseError> {
    let config: Network = case.config()?;
    let x = as_video(&input(case, "x", &config.input_shape)?);
    let load = |order| Loaded::new(case, same, |path| OpenMagvit2::new(path, &config.ours(order)));
    let (little, big) = (load(BitOrder::LsbFirst)?.model, load(BitOrder::MsbFirst)?.model);
    no_grad(|| {
        let ids = little.encode(&x)?.into_ids();
        let codes = little.quantizer().lookup(&ids)?.permute([0, 4, 1, 2, 3]);
        let image = |video: &Tensor| video.squeeze_dim(2);
        let grid = |ids: &Tensor| ids.squeeze_dim(1);
        let mut outputs = Outputs::new();
        outputs.out("z", &image(&little.encode_features(&x)?));
        outputs.out("recon", &image(&little.decode_features(&codes)?));
        outputs.out("ids", &grid(&ids));
        outputs.out("ids_big_endian", &grid(big.encode(&x)?.ids()));
        if config.token_factorization == Some(true) {
            let parts = config.factorized_bits.as_deref().unwrap_or_default();
            let [pre, post] = split_id(&ids, parts, BitOrder::LsbFirst)?
                .try_into()
                .map_err(|_| unsupported("factorized_bits", &parts))?;
            outputs.out("ids_pre", &grid(&pre)).out("ids_post", &grid(&post));
        }
        Ok(outputs)
    })
}
