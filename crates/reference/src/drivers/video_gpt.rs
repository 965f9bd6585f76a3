//! VideoGPT (entries `videogpt.*`).

use quantizers::{Mode, QuantizerConfig, Vq, VqConfig, VqExtras};
use serde::Deserialize;
use tch::{Device, Kind, Tensor, nn, no_grad};
use video_core::{GridShape, TokenGrid};
use video_gpt::{
    AttentionResidualBlock, AttentionType, AttentionWidths, AxialAttention, FrameConfig, GptCondition,
    GptConfig, LayerNorm, MultiHeadAttention, PositionEmbedding, ResNet, ResNetConfig, RightShift,
    SamePadConfig, SamePadConv3d, SamePadConvTranspose3d, SparseLayout, VideoGpt, VqVae, VqVaeConfig,
    preprocess as preprocess_frames,
};

use super::Driver;
use crate::case::{Case, CaseError, Outputs};
use crate::import::video_gpt::{gpt_tensors, vqvae_tensors};
use crate::weights::{Weights, load_into};

/// The entries of this module.
pub(super) const DRIVERS: &[(&str, Driver)] = &[
    ("videogpt.same_pad_conv3d", same_pad_conv3d),
    ("videogpt.same_pad_conv_transpose3d", same_pad_conv_transpose3d),
    ("videogpt.axial_attention", axial_attention),
    ("videogpt.attention_residual_block", attention_residual_block),
    ("videogpt.multi_head_attention", multi_head_attention),
    ("videogpt.layer_norm", layer_norm),
    ("videogpt.shift_and_position", shift_and_position),
    ("videogpt.resnet", resnet),
    ("videogpt.sparse_mask", sparse_mask),
    ("videogpt.preprocess", preprocess),
    ("videogpt.vqvae.encode", vqvae_encode),
    ("videogpt.vqvae.decode", vqvae_decode),
    ("videogpt.vqvae.forward", vqvae_forward),
    ("videogpt.vqvae.train_step", vqvae_train_step),
    ("videogpt.gpt.forward", gpt_forward),
    ("videogpt.gpt.loss", gpt_loss),
    ("videogpt.gpt.sample_greedy", gpt_sample_greedy),
];

/// A model with tensors that bear our names already.
fn load<M>(
    tensors: &Weights,
    build: impl FnOnce(&nn::Path) -> video_core::Result<M>,
) -> Result<(M, nn::VarStore), CaseError> {
    let store = nn::VarStore::new(Device::Cpu);
    let model = build(&store.root())?;
    load_into(&store, tensors)?;
    Ok((model, store))
}

/// The same with the case's weights, whose names we share but for a wrapper around single convolutions.
fn load_part<M>(
    case: &Case,
    build: impl FnOnce(&nn::Path) -> video_core::Result<M>,
) -> Result<(M, nn::VarStore), CaseError> {
    let bare = |name: &str| {
        let name = name.strip_prefix("conv.").or(name.strip_prefix("convt.")).unwrap_or(name);
        name.to_string()
    };
    load(&case.weights().into_iter().map(|(name, tensor)| (bare(&name), tensor)).collect(), build)
}

fn one_output(name: &str, tensor: &Tensor) -> Outputs {
    let mut outputs = Outputs::new();
    outputs.out(name, tensor);
    outputs
}

fn grid([frames, height, width]: [i64; 3]) -> GridShape {
    GridShape { frames, height, width }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Conv {
    in_channels: i64,
    out_channels: i64,
    kernel_size: [i64; 3],
    stride: [i64; 3],
    bias: bool,
}

impl Conv {
    fn ours(&self) -> SamePadConfig {
        SamePadConfig { kernel: self.kernel_size, stride: self.stride, bias: self.bias }
    }
}

fn same_pad_conv3d(case: &Case) -> Result<Outputs, CaseError> {
    let given: Conv = case.config()?;
    let (conv, _) = load_part(case, |path| {
        SamePadConv3d::new(path, given.in_channels, given.out_channels, given.ours())
    })?;
    Ok(one_output("y", &conv.forward(&case.input("x")?)?))
}

fn same_pad_conv_transpose3d(case: &Case) -> Result<Outputs, CaseError> {
    let given: Conv = case.config()?;
    let (conv, _) = load_part(case, |path| {
        SamePadConvTranspose3d::new(path, given.in_channels, given.out_channels, given.ours())
    })?;
    Ok(one_output("y", &conv.forward(&case.input("x")?)?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Axial {
    n_hiddens: i64,
    n_head: i64,
}

fn axial_attention(case: &Case) -> Result<Outputs, CaseError> {
    let given: Axial = case.config()?;
    let (attention, _) = load_part(case, |path| AxialAttention::new(path, given.n_hiddens, given.n_head))?;
    Ok(one_output("y", &attention.forward(&case.input("x")?)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Residual {
    n_hiddens: i64,
    n_head: i64,
    train: bool,
}

fn attention_residual_block(case: &Case) -> Result<Outputs, CaseError> {
    let given: Residual = case.config()?;
    let (block, store) =
        load_part(case, |path| AttentionResidualBlock::new(path, given.n_hiddens, given.n_head))?;
    let mut outputs = one_output("y", &block.forward(&case.input("x")?, given.train));
    let variables = store.variables();
    for norm in [0, 3, 6] {
        for buffer in ["running_mean", "running_var"] {
            outputs.out(format!("bn{norm}_{buffer}"), &variables[&format!("block.{norm}.{buffer}")]);
        }
    }
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Attending {
    Full,
    Sparse,
}

impl Attending {
    fn ours(&self) -> AttentionType {
        match self {
            Self::Full => AttentionType::Full,
            Self::Sparse => AttentionType::Sparse(SparseLayout::default()),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MultiHead {
    shape: [i64; 3],
    dim_q: i64,
    dim_kv: i64,
    n_head: i64,
    causal: bool,
    attn_type: Attending,
    cross: bool,
}

fn multi_head_attention(case: &Case) -> Result<Outputs, CaseError> {
    let given: MultiHead = case.config()?;
    // The spread of the first weights is not that of a case.
    let widths =
        AttentionWidths { query: given.dim_q, context: given.dim_kv, heads: given.n_head, layers: 1 };
    let (attention, _) = load_part(case, |path| MultiHeadAttention::new(path, widths))?;
    let q = case.input("q")?;
    let mask = match given.attn_type.ours() {
        AttentionType::Full => None,
        AttentionType::Sparse(layout) => Some(layout.mask(grid(given.shape), given.causal)?),
    };
    let options = layers::AttentionOptions { causal: given.causal && mask.is_none(), ..Default::default() };
    let context = if given.cross { case.input("kv")? } else { q.shallow_clone() };
    let seen = attention.keys_values(&context.flatten(1, -2));
    let y = attention.attend(&q.flatten(1, -2), &seen, mask.as_ref(), options);
    Ok(one_output("y", &y.view(q.size().as_slice())))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Norm {
    embd_dim: i64,
    class_cond_dim: Option<i64>,
}

fn layer_norm(case: &Case) -> Result<Outputs, CaseError> {
    let given: Norm = case.config()?;
    let (norm, _) = load_part(case, |path| LayerNorm::new(path, given.embd_dim, given.class_cond_dim))?;
    let class = given.class_cond_dim.and_then(|_| case.optional_input("label"));
    Ok(one_output("y", &norm.forward(&case.input("x")?, class.as_ref())?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shift {
    shape: [i64; 3],
    embd_dim: i64,
}

fn shift_and_position(case: &Case) -> Result<Outputs, CaseError> {
    let given: Shift = case.config()?;
    let ((shift, positions), _) = load_part(case, |path| {
        let shift = RightShift::new(&(path / "right_shift"), given.embd_dim);
        Ok((shift, PositionEmbedding::new(&(path / "pos_embd"), grid(given.shape), given.embd_dim)?))
    })?;
    let x = case.input("x")?;
    let shifted = shift.forward(&x.flatten(1, 3));
    let mut outputs = one_output("shifted", &shifted.view(x.size().as_slice()));
    outputs.out("y", &(shifted + positions.all()).view(x.size().as_slice()));
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resnet {
    layers: [i64; 4],
    width_multiplier: f64,
    widths: Option<Vec<i64>>,
    resnet_dim: i64,
    stride: [i64; 3],
    #[serde(default = "yes")]
    cifar_stem: bool,
}

fn yes() -> bool {
    true
}

impl Resnet {
    fn ours(self) -> Result<ResNetConfig, CaseError> {
        let scaled = [64.0, 64.0, 128.0, 256.0].map(|width| (width * self.width_multiplier) as i64);
        match self.widths {
            Some(widths) if widths != scaled => {
                Err(CaseError::Config(format!("widths {widths:?}: width_multiplier gives {scaled:?}")))
            }
            _ => Ok(ResNetConfig {
                width_multiplier: self.width_multiplier,
                layers: self.layers,
                resnet_dim: self.resnet_dim,
                stride: self.stride,
                cifar_stem: self.cifar_stem,
            }),
        }
    }
}

fn resnet(case: &Case) -> Result<Outputs, CaseError> {
    let config = case.config::<Resnet>()?.ours()?;
    let (network, _) = load_part(case, |path| ResNet::new(path, &config))?;
    Ok(one_output("y", &network.forward(&case.input("x")?)?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sparse {
    shape: [i64; 3],
    block: i64,
    num_local_blocks: i64,
    causal: bool,
    block_shape: Option<Vec<i64>>,
}

fn sparse_mask(case: &Case) -> Result<Outputs, CaseError> {
    let given: Sparse = case.config()?;
    let layout = SparseLayout { block: given.block, num_local_blocks: given.num_local_blocks };
    let shape = grid(given.shape);
    let block_shape = layout.block_shape(shape)?;
    if given.block_shape.as_ref().is_some_and(|expected| *expected != block_shape) {
        return Err(CaseError::Config(format!(
            "block_shape {:?}: ours is {block_shape:?}",
            given.block_shape
        )));
    }
    let mut outputs = one_output("block_layout", &layout.block_layout(shape, given.causal)?);
    outputs.out("mask", &layout.mask(shape, given.causal)?);
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Preprocess {
    resolution: i64,
    sequence_length: Option<i64>,
}

fn preprocess(case: &Case) -> Result<Outputs, CaseError> {
    let given: Preprocess = case.config()?;
    let video = preprocess_frames(&case.input("video")?, given.resolution, given.sequence_length)?;
    Ok(one_output("video", &video))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VqVaeGiven {
    embedding_dim: i64,
    n_codes: i64,
    n_hiddens: i64,
    n_res_layers: i64,
    downsample: [i64; 3],
    sequence_length: i64,
    resolution: i64,
}

impl VqVaeGiven {
    fn codebook(&self) -> VqConfig {
        VqConfig { codebook_size: self.n_codes, ..VqConfig::video_gpt() }
    }

    fn ours(&self) -> VqVaeConfig {
        VqVaeConfig {
            n_hiddens: self.n_hiddens,
            n_res_layers: self.n_res_layers,
            embedding_dim: self.embedding_dim,
            downsample: self.downsample,
            quantizer: QuantizerConfig::Vq(self.codebook()),
        }
    }

    fn latent_shape(&self) -> [i64; 3] {
        let [t, h, w] = self.downsample;
        [self.sequence_length / t, self.resolution / h, self.resolution / w]
    }
}

/// The tokenizer with the case's weights, which may lack those `unused` parts.
fn load_vqvae(case: &Case, unused: &[&str]) -> Result<(VqVaeGiven, VqVae, nn::VarStore), CaseError> {
    let given: VqVaeGiven = case.config()?;
    let store = nn::VarStore::new(Device::Cpu);
    let model = VqVae::new(&store.root(), &given.ours())?;
    let mut tensors = vqvae_tensors(&case.weights(), "");
    let fresh = store.variables().into_iter();
    for (name, tensor) in fresh.filter(|(name, _)| unused.iter().any(|part| name.starts_with(part))) {
        tensors.entry(name).or_insert(tensor);
    }
    load_into(&store, &tensors)?;
    Ok((given, model, store))
}

/// Channels second, as the reference has them.
fn first(x: &Tensor) -> Tensor {
    x.movedim_int(-1, 1)
}

fn found(ids: Option<&Tensor>) -> Result<&Tensor, CaseError> {
    ids.ok_or_else(|| CaseError::Missing("ids".into()))
}

fn vqvae_encode(case: &Case) -> Result<Outputs, CaseError> {
    let (_, model, _) = load_vqvae(case, &["decoder.", "post_vq_conv."])?;
    let z = model.features(&case.input("x")?, false)?;
    let quantized = model.quantizer().quantize(&z, Mode::Eval)?;
    let mut outputs = one_output("z", &first(&z));
    outputs.out("ids", found(quantized.ids.as_ref())?).out("embeddings", &first(&quantized.embeddings));
    Ok(outputs)
}

fn vqvae_decode(case: &Case) -> Result<Outputs, CaseError> {
    let (_, model, _) = load_vqvae(case, &["encoder.", "pre_vq_conv."])?;
    let codes = model.quantizer().lookup(&case.input("ids")?)?;
    Ok(one_output("video", &model.pixels(&codes, false)?))
}

fn vqvae_forward(case: &Case) -> Result<Outputs, CaseError> {
    let (_, model, _) = load_vqvae(case, &[])?;
    let x = case.input("x")?;
    let evaluated = model.forward(&x, Mode::Eval)?;
    // The reference gives the commitment in evaluation, too; ours is that of a training step on the same features.
    let trained = model.quantizer().quantize(&model.features(&x, false)?, Mode::Train { step: 0 })?;
    let mut outputs = one_output("recon_loss", &evaluated.recon_loss);
    outputs.out("x_recon", &evaluated.reconstruction).out("commitment_loss", &trained.loss());
    outputs.out("ids", found(evaluated.quantized.ids.as_ref())?);
    outputs.out("loss", &(&evaluated.recon_loss + trained.loss()));
    if let Some(usage) = &evaluated.quantized.usage {
        outputs.out("perplexity", &usage.perplexity);
    }
    Ok(outputs)
}

fn vqvae_train_step(case: &Case) -> Result<Outputs, CaseError> {
    let (given, model, store) = load_vqvae(case, &[])?;
    // The codebook stands beside the model, so that its restarts take the order of the case.
    let named = store.variables();
    let ours = named.iter().filter_map(|(name, tensor)| {
        Some((name.strip_prefix("codebook.")?.to_string(), tensor.shallow_clone()))
    });
    let (codebook, codes) =
        load(&ours.collect(), |path| Vq::new(path, given.embedding_dim, given.codebook()))?;
    let x = case.input("x")?;
    let extras = VqExtras { restart_order: Some(case.input("perm")?), ..Default::default() };
    let z = model.features(&x, true)?;
    let (quantized, _) = codebook.quantize_with(&z, Mode::Train { step: 0 }, &extras)?;
    let reconstruction = model.pixels(&quantized.embeddings, true)?;
    let recon_loss = VqVae::recon_loss(&reconstruction, &x);
    let loss = &recon_loss + quantized.loss();
    loss.backward();

    let mut outputs = one_output("recon_loss", &recon_loss);
    outputs.out("commitment_loss", &quantized.loss()).out("loss", &loss).out("x_recon", &reconstruction);
    outputs.out("ids", found(quantized.ids.as_ref())?);
    if let Some(usage) = &quantized.usage {
        outputs.out("perplexity", &usage.perplexity);
    }
    let codes = codes.variables();
    for (theirs, ours) in [("embeddings", "embed"), ("N", "cluster_size"), ("z_avg", "embed_avg")] {
        outputs.out(format!("new/codebook.{theirs}"), &codes[ours].squeeze_dim(0));
    }
    for (name, tensor) in named.iter().filter(|(name, _)| name.contains("running_")) {
        outputs.out(format!("new/{name}"), tensor);
    }
    for name in case.gradient_names() {
        let variable = named.get(&name).ok_or_else(|| CaseError::Missing(name.clone()))?;
        outputs.grad(&name, &variable.grad());
    }
    Ok(outputs)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GptGiven {
    vqvae: VqVaeGiven,
    hidden_dim: i64,
    heads: i64,
    layers: i64,
    attn_type: Attending,
    class_cond_dim: Option<i64>,
    n_cond_frames: i64,
    latent_shape: [i64; 3],
    resnet: Option<Resnet>,
    batch: Option<i64>,
}

/// The prior with the case's weights, and what it is conditioned on.
struct LoadedGpt {
    model: VideoGpt,
    store: nn::VarStore,
    vqvae: VqVaeGiven,
    batch: Option<i64>,
    class: Option<Tensor>,
    frames: Option<Tensor>,
}

impl LoadedGpt {
    fn new(case: &Case) -> Result<Self, CaseError> {
        let given: GptGiven = case.config()?;
        if given.latent_shape != given.vqvae.latent_shape() {
            let problem = format!("latent_shape {:?} is not the VQ-VAE's", given.latent_shape);
            return Err(CaseError::Config(problem));
        }
        let frames = match (given.n_cond_frames, given.resnet) {
            (0, None) => None,
            (0, Some(_)) => return Err(CaseError::Config("a resnet without n_cond_frames".into())),
            (n_cond_frames, resnet) => {
                let resnet = resnet.map_or_else(|| Ok(ResNetConfig::default()), Resnet::ours)?;
                Some(FrameConfig { n_cond_frames, size: [given.vqvae.resolution; 2], resnet })
            }
        };
        let config = GptConfig {
            n_codes: given.vqvae.n_codes,
            embedding_dim: given.vqvae.embedding_dim,
            frozen_embeddings: true,
            grid: grid(given.latent_shape),
            hidden_dim: given.hidden_dim,
            heads: given.heads,
            layers: given.layers,
            dropout: 0.0,
            attn_dropout: 0.0,
            attn_type: given.attn_type.ours(),
            class_cond_dim: given.class_cond_dim,
            frames,
        };
        let (model, store) = load(&gpt_tensors(&case.weights()), |path| VideoGpt::new(path, &config))?;
        Ok(Self {
            model,
            store,
            vqvae: given.vqvae,
            batch: given.batch,
            class: given.class_cond_dim.and_then(|_| case.optional_input("label")),
            frames: config.frames.and_then(|_| case.optional_input("frames")),
        })
    }

    fn condition(&self) -> GptCondition<'_> {
        GptCondition { class: self.class.as_ref(), frames: self.frames.as_ref() }
    }
}

fn gpt_forward(case: &Case) -> Result<Outputs, CaseError> {
    let loaded = LoadedGpt::new(case)?;
    let tokens = TokenGrid::new(case.input("ids")?)?;
    Ok(one_output("logits", &loaded.model.forward(&tokens, loaded.condition(), false)?))
}

fn gpt_loss(case: &Case) -> Result<Outputs, CaseError> {
    let loaded = LoadedGpt::new(case)?;
    let tokens = TokenGrid::new(case.input("ids")?)?;
    let loss = loaded.model.cross_entropy(&tokens, loaded.condition(), true)?;
    loss.backward();
    let mut outputs = one_output("loss", &loss);
    let variables = loaded.store.variables();
    for name in case.gradient_names() {
        let variable = variables.get(&name).ok_or_else(|| CaseError::Missing(name.clone()))?;
        outputs.grad(&name, &variable.grad());
    }
    Ok(outputs)
}

fn gpt_sample_greedy(case: &Case) -> Result<Outputs, CaseError> {
    let loaded = LoadedGpt::new(case)?;
    let tensors = vqvae_tensors(&case.weights(), "vqvae.");
    let (vqvae, _) = load(&tensors, |path| VqVae::new(path, &loaded.vqvae.ours()))?;
    let given = [&loaded.class, &loaded.frames].into_iter().flatten().next().map(|x| x.size()[0]);
    let batch = given.or(loaded.batch).unwrap_or(1);
    let shape = loaded.model.config().grid;
    no_grad(|| {
        let mut decoder = loaded.model.decoder(batch, loaded.condition())?;
        let mut fed = Tensor::zeros([batch, 0], (Kind::Int64, Device::Cpu));
        let (mut ids, mut log_probs) = (Vec::new(), Vec::new());
        for _ in 0..shape.tokens() {
            let logits = decoder.push(&fed)?;
            fed = logits.argmax(-1, false);
            log_probs.push(logits.log_softmax(-1, Kind::Float));
            ids.push(fed.shallow_clone());
        }
        let tokens = Tensor::cat(&ids, 1).view([batch, shape.frames, shape.height, shape.width]);
        let video = vqvae.pixels(&vqvae.quantizer().lookup(&tokens)?, false)?;
        let mut outputs = one_output("tokens", &tokens);
        outputs.out("step_log_probs", &Tensor::cat(&log_probs, 1));
        outputs.out("video", &(video.clamp(-0.5, 0.5) + 0.5));
        Ok(outputs)
    })
}
