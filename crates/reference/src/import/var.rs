//! VAR (FoundationVision): the tokenizer of images and the transformer. All of their names are ours.

use tch::{Kind, Tensor};
use var_next_scale::transformer::InitConfig;
use var_next_scale::{MultiScaleVqConfig, VarConfig, VqvaeConfig};

use super::{ImportError, Imported, Model, Shapes, gcd};
use crate::weights::Weights;

/// The scales of images of 1024 pixels a side, for which no transformer was published.
pub(super) const PATCH_NUMS_1024: [i64; 14] = [1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64];

/// Tables that the published files carry beside the weights.
const TABLES: [&str; 3] = ["lvl_1L", "attn_bias_for_masking", "zero_k_bias"];

/// The tensors of a checkpoint as ours. Tables are left out, and the counter of hits, which is not published, starts at none.
pub(crate) fn our_tensors(tensors: &Weights) -> Weights {
    let mut ours = Weights::new();
    for (name, tensor) in tensors {
        let (parent, leaf) = name.rsplit_once('.').map_or(("", name.as_str()), |parts| parts);
        if TABLES.contains(&leaf) {
            continue;
        }
        if leaf == "ema_vocab_hit_SV" {
            let counter =
                if parent.is_empty() { "record_hit".into() } else { format!("{parent}.record_hit") };
            ours.insert(counter, Tensor::zeros([], (Kind::Float, tensor.device())));
        }
        ours.insert(name.clone(), tensor.shallow_clone());
    }
    ours
}

/// How many of a numbered series there are; the deepest published transformer has 36 blocks.
fn count(shapes: &Shapes, name: impl Fn(usize) -> String) -> usize {
    (0..512).take_while(|&index| shapes.get(&name(index)).is_some()).count()
}

/// The tokenizer. The file does not tell the scales: `patch_nums` are those of the images it is used for.
pub(super) fn import_vqvae(tensors: &Weights, patch_nums: &[i64]) -> Result<Imported, ImportError> {
    let shapes = Shapes::below(tensors, "quantize.embedding.weight")?;
    let [vocab_size, z_channels] = shapes.of::<2>("quantize.embedding.weight")?;
    let [ch, ..] = shapes.of::<4>("encoder.conv_in.weight")?;
    let first = |level: usize| format!("encoder.down.{level}.block.0.conv1.weight");
    let width = |level: usize| Ok::<_, ImportError>(shapes.of::<4>(&first(level))?[0] / ch);
    let phi = |place: &str| format!("quantize.quant_resi.{place}.weight");
    let partial = count(&shapes, |j| phi(&format!("qresi_ls.{j}")));
    let each = count(&shapes, |j| phi(&j.to_string()));
    let single = shapes.get(&phi("qresi")).is_some();
    let published = MultiScaleVqConfig::default();
    let config = VqvaeConfig {
        ch,
        ch_mult: (0..count(&shapes, first)).map(width).collect::<Result<_, _>>()?,
        num_res_blocks: count(&shapes, |b| format!("encoder.down.0.block.{b}.conv1.weight")) as i64,
        // 32 of the published width.
        norm_num_groups: gcd(32, ch),
        quant_conv_ks: shapes.of::<4>("quant_conv.weight")?[3],
        quantizer: MultiScaleVqConfig {
            vocab_size,
            z_channels,
            quant_resi: if single || partial + each > 0 { published.quant_resi } else { 0.0 },
            share_quant_resi: if single { 1 } else { partial },
            default_qresi_counts: each,
            v_patch_nums: patch_nums.to_vec(),
            ..published
        },
    };
    config.validate()?;
    let parts = ["encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv."];
    let mut tensors = our_tensors(&shapes.rename(&parts, |_| None));
    // The use of codes was counted for other scales, or not at all.
    let size = [patch_nums.len() as i64, vocab_size];
    let counted = tensors.get("quantize.ema_vocab_hit_SV").is_some_and(|hits| hits.size() == size);
    if !counted {
        let options = (Kind::Float, tch::Device::Cpu);
        tensors.insert("quantize.ema_vocab_hit_SV".into(), Tensor::zeros(size, options));
        tensors.insert("quantize.record_hit".into(), Tensor::zeros([], options));
    }
    Ok(Imported::of(Model::VarVqvae(config), tensors))
}

/// The transformer.
pub(super) fn import_transformer(tensors: &Weights) -> Result<Imported, ImportError> {
    let shapes = Shapes::below(tensors, "word_embed.weight")?;
    let [embed_dim, z_channels] = shapes.of::<2>("word_embed.weight")?;
    let heads = shapes.of::<4>("blocks.0.attn.scale_mul_1H11").map(|[_, heads, ..]| heads).ok();
    let hidden = shapes.of::<2>("blocks.0.ffn.fc1.weight")?[0];
    let depth = count(&shapes, |i| format!("blocks.{i}.attn.mat_qkv.weight")) as i64;
    let config = VarConfig {
        vocab_size: shapes.of::<2>("head.weight")?[0],
        z_channels,
        num_classes: shapes.of::<2>("class_emb.weight")?[0] - 1,
        depth,
        embed_dim,
        // All published heads are 64 wide.
        num_heads: heads.unwrap_or((embed_dim / 64).max(1)),
        mlp_ratio: hidden as f64 / embed_dim as f64,
        shared_aln: shapes.get("shared_ada_lin.1.weight").is_some(),
        attn_l2_norm: heads.is_some(),
        drop_path_rate: 0.1 * depth as f64 / 24.0,
        patch_nums: patch_nums(&shapes)?,
        init: InitConfig::default(),
        ..VarConfig::default()
    };
    config.validate()?;
    let parts = [
        "word_embed.",
        "class_emb.",
        "pos_",
        "lvl_embed.",
        "shared_ada_lin.",
        "blocks.",
        "head_nm.",
        "head.",
    ];
    Ok(Imported::of(Model::Var(config), our_tensors(&shapes.rename(&parts, |_| None))))
}

/// The sides of the scales: counted off the table of levels, or where that was left out, those of the official lists with as
/// many positions.
fn patch_nums(shapes: &Shapes) -> Result<Vec<i64>, ImportError> {
    if let Some(levels) = shapes.get("lvl_1L").filter(|levels| levels.kind() == Kind::Int64) {
        let sane = levels.numel() > 0 && levels.numel() < 1 << 20;
        let bounded = sane && levels.min().int64_value(&[]) >= 0 && levels.max().int64_value(&[]) < 256;
        if !bounded {
            return Err(ImportError::Malformed("lvl_1L holds no levels".into()));
        }
        let counts = Vec::<i64>::try_from(levels.reshape([-1]).bincount(None::<Tensor>, 0))?;
        return Ok(counts.into_iter().map(|count| (count as f64).sqrt().round() as i64).collect());
    }
    let length = shapes.of::<3>("pos_1LC")?[1];
    let published =
        [VarConfig::var_d16().patch_nums, VarConfig::var_d36().patch_nums, PATCH_NUMS_1024.to_vec()];
    let fits = |sides: &Vec<i64>| sides.iter().map(|side| side * side).sum::<i64>() == length;
    published.into_iter().find(fits).ok_or_else(|| {
        ImportError::Malformed(format!("{length} positions without a table of levels (lvl_1L)"))
    })
}
