//! A block whose norms are modulated by the class, and the head.

use layers::Linear;
use tch::nn::{self, Init};
use tch::{Kind, Tensor, no_grad};
use video_core::Result;

use super::attention::{Attend, SelfAttention};
use super::config::VarConfig;
use super::linear;

/// What a class makes of one block: γ₁, γ₂, scale₁, scale₂, shift₁, shift₂, each `[B, 1, C]`.
#[derive(Debug)]
pub struct Modulation([Tensor; 6]);

/// Attention and an MLP, each behind a norm without weights: x + γ · f(norm(x) · (1 + scale) + shift).
///
/// Variables: those of [`SelfAttention`] under `attn`; `ffn.fc1`, `ffn.fc2`; `ada_lin.1`, or with shared modulations `ada_gss`
/// `[1, 1, 6, C]`.
#[derive(Debug)]
pub struct AdaLnBlock {
    attn: SelfAttention,
    fc1: Linear,
    fc2: Linear,
    ada: Ada,
    width: i64,
    eps: f64,
    drop_path: f64,
}

#[derive(Debug)]
enum Ada {
    Own(Linear),
    Shared(Tensor),
}

impl AdaLnBlock {
    /// Block `index` of a config that is valid.
    pub fn new(path: &nn::Path, config: &VarConfig, index: i64) -> Self {
        let (width, std) = (config.embed_dim, config.std());
        // What ends a residual branch starts smaller, the more branches there are.
        let branch_std = std / (2.0 * config.depth as f64).sqrt();
        let attn = SelfAttention::new(
            &(path / "attn"),
            width,
            config.num_heads,
            config.attn_l2_norm,
            [std, branch_std],
        );
        let ada = if config.shared_aln {
            let stdev = 1.0 / (width as f64).sqrt();
            let own = path.var("ada_gss", &[1, 1, 6, width], Init::Randn { mean: 0.0, stdev });
            scale_parts(&own, 2, 2, config);
            Ada::Shared(own)
        } else {
            let layer = linear(&(path / "ada_lin" / 1), width, 6 * width, std);
            scale_parts(layer.weight(), 0, 2 * width, config);
            Ada::Own(layer)
        };
        Self {
            attn,
            fc1: linear(&(path / "ffn" / "fc1"), width, config.hidden(), std),
            fc2: linear(&(path / "ffn" / "fc2"), config.hidden(), width, branch_std),
            ada,
            width,
            eps: config.norm_eps,
            drop_path: config.drop_path_rate * index as f64 / (config.depth - 1).max(1) as f64,
        }
    }

    /// The modulation of a condition: the class embedding `[B, C]`, or with shared modulations `[B, 1, 6, C]`, what the shared
    /// layer makes of it.
    pub fn modulation(&self, condition: &Tensor) -> Modulation {
        let six = match &self.ada {
            Ada::Own(layer) => layer.forward(&condition.silu()).view([-1, 1, 6, self.width]),
            Ada::Shared(own) => own + condition,
        };
        Modulation([0, 1, 2, 3, 4, 5].map(|part| six.select(2, part)))
    }

    /// `[B, N, C]` to the same shape. In `train` whole branches are dropped.
    ///
    /// # Errors
    /// As [`SelfAttention::forward`].
    pub fn forward(
        &self,
        x: &Tensor,
        modulation: &Modulation,
        attend: Attend<'_>,
        train: bool,
    ) -> Result<Tensor> {
        let Modulation([gamma1, gamma2, scale1, scale2, shift1, shift2]) = modulation;
        let branch = self.attn.forward(&modulated(x, scale1, shift1, self.eps), attend)? * gamma1;
        let x = x + self.dropped(branch, train);
        let inside = self.fc1.forward(&modulated(&x, scale2, shift2, self.eps)).gelu("tanh");
        let branch = self.fc2.forward(&inside) * gamma2;
        Ok(&x + self.dropped(branch, train))
    }

    fn dropped(&self, branch: Tensor, train: bool) -> Tensor {
        if !train || self.drop_path == 0.0 {
            return branch;
        }
        let keep = 1.0 - self.drop_path;
        let kept = Tensor::rand([branch.size()[0], 1, 1], (Kind::Float, branch.device())).lt(keep);
        branch * (kept.to_kind(Kind::Float) / keep)
    }
}

/// The first `count` places along an axis are what makes γ; they and the others get their factor.
fn scale_parts(weights: &Tensor, axis: i64, count: i64, config: &VarConfig) {
    let rest = weights.size()[axis as usize] - count;
    no_grad(|| {
        let _ = weights.narrow(axis, 0, count).g_mul_scalar_(config.init.adaln_gamma);
        let _ = weights.narrow(axis, count, rest).g_mul_scalar_(config.init.adaln);
    });
}

/// norm(x) · (1 + scale) + shift.
fn modulated(x: &Tensor, scale: &Tensor, shift: &Tensor, eps: f64) -> Tensor {
    let width = x.size()[2];
    x.layer_norm([width], None::<Tensor>, None::<Tensor>, eps, true) * (scale + 1.0) + shift
}

/// A norm modulated by the class, and a linear layer to the vocabulary. Variables: `head_nm.ada_lin.1`, `head`.
#[derive(Debug)]
pub struct AdaLnHead {
    ada: Linear,
    head: Linear,
    eps: f64,
}

impl AdaLnHead {
    /// Of a config that is valid.
    pub fn new(path: &nn::Path, config: &VarConfig) -> Self {
        let (width, std, init) = (config.embed_dim, config.std(), config.init);
        Self {
            ada: linear(&(path / "head_nm" / "ada_lin" / 1), width, 2 * width, std * init.adaln),
            head: linear(&(path / "head"), width, config.vocab_size, std * init.head),
            eps: config.norm_eps,
        }
    }

    /// The norm of `[B, N, C]` under class embeddings `[B, C]`.
    pub fn norm(&self, h: &Tensor, class: &Tensor) -> Tensor {
        let parts = self.ada.forward(&class.silu()).unsqueeze(1).chunk(2, -1);
        modulated(h, &parts[0], &parts[1], self.eps)
    }

    /// Logits `[B, N, V]` of `[B, N, C]` under class embeddings `[B, C]`.
    pub fn forward(&self, h: &Tensor, class: &Tensor) -> Tensor {
        self.head.forward(&self.norm(h, class))
    }
}
