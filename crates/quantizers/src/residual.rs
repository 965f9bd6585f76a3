//! What all residual quantizers share: each stage quantizes what the stages before it left (Zeghidour et al.,
//! SoundStream, arXiv 2107.03312), the code is the sum, and in training the late stages may be left out.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use video_core::{Error, Result};

use crate::Mode;
use crate::bits::check_ids;

/// Quantizer dropout: in training the stages after a random one are left out, so that a prefix of the stages is a code of
/// its own (SoundStream, section III-C).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuantizeDropout {
    /// The last kept stage (0-based) is drawn from this to the last.
    pub cutoff_index: i64,
    /// The number of kept stages is rounded up to a multiple of this.
    pub multiple_of: i64,
}

impl Default for QuantizeDropout {
    fn default() -> Self {
        Self { cutoff_index: 0, multiple_of: 1 }
    }
}

impl QuantizeDropout {
    /// The last kept one of `stages` where `drawn` was drawn.
    pub fn last_kept(&self, drawn: i64, stages: i64) -> i64 {
        let multiple = self.multiple_of.max(1);
        let kept = (drawn / multiple + 1) * multiple;
        kept.min(stages) - 1
    }
}

/// Refuses a number of stages, and a dropout, that no residual quantizer has.
pub(crate) fn check_stages(stages: i64, dropout: Option<QuantizeDropout>) -> Result<()> {
    if !(1..=1024).contains(&stages) {
        return Err(Error::config("num_quantizers", stages, "1 to 1024"));
    }
    let Some(QuantizeDropout { cutoff_index, multiple_of }) = dropout else {
        return Ok(());
    };
    if !(0..stages).contains(&cutoff_index) {
        let expected = format!("0 to {}", stages - 1);
        return Err(Error::config("quantize_dropout.cutoff_index", cutoff_index, expected));
    }
    if !(1..=stages).contains(&multiple_of) {
        return Err(Error::config("quantize_dropout.multiple_of", multiple_of, format!("1 to {stages}")));
    }
    Ok(())
}

/// How many stages a call keeps: all of them, but in training as many as given (`last_stage`, 0-based) or drawn.
///
/// # Errors
/// There is no stage `last_stage`.
pub(crate) fn kept_stages(
    stages: i64,
    dropout: Option<QuantizeDropout>,
    mode: Mode,
    last_stage: Option<i64>,
) -> Result<i64> {
    if let Some(last) = last_stage.filter(|last| !(0..stages).contains(last)) {
        return Err(Error::config("last_stage", last, format!("0 to {}", stages - 1)));
    }
    let last = match (mode, last_stage, dropout) {
        (Mode::Eval, ..) | (_, None, None) => stages - 1,
        (_, Some(last), _) => last,
        (_, None, Some(dropout)) => {
            let drawn = Tensor::randint_low(dropout.cutoff_index, stages, [1], (Kind::Int64, Device::Cpu));
            dropout.last_kept(drawn.int64_value(&[0]), stages)
        }
    };
    Ok(last + 1)
}

/// What one stage makes of the residual `[..., d]`.
pub(crate) struct StagePass {
    /// `[..., d]`, with the gradient estimator; what the sum gets.
    pub(crate) codes: Tensor,
    /// `[..., d]` without gradient: what the residual loses.
    pub(crate) taken: Tensor,
    /// int64 `[...]`.
    pub(crate) ids: Tensor,
    /// Named and weighted.
    pub(crate) losses: Vec<(&'static str, Tensor)>,
}

/// What all stages make of features `[..., d]`.
pub(crate) struct ResidualPass {
    /// `[..., d]`, the sum of the stages' codes.
    pub(crate) codes: Tensor,
    /// `[..., Q]`, or `[...]` of a single stage; -1 where the stage was left out.
    pub(crate) ids: Tensor,
    /// Each loss, summed over the stages.
    pub(crate) losses: Vec<(&'static str, Tensor)>,
    /// `[Q]`: each stage's losses summed, 0 of those left out.
    pub(crate) stage_losses: Tensor,
}

/// Runs the first `kept` of `stages` stages; `pass` is a stage's work, given its index and the residual.
pub(crate) fn pass_stages(
    features: &Tensor,
    stages: i64,
    kept: i64,
    mut pass: impl FnMut(i64, &Tensor) -> Result<StagePass>,
) -> Result<ResidualPass> {
    let mut residual = features.shallow_clone();
    let mut codes = features.zeros_like();
    let (mut ids, mut stage_losses) = (Vec::new(), Vec::new());
    let mut losses: Vec<(&'static str, Tensor)> = Vec::new();
    let zero = Tensor::zeros([], (features.kind(), features.device()));
    for stage in 0..kept {
        let done = pass(stage, &residual)?;
        // Not in place: the losses hold the old residual.
        residual = &residual - done.taken.detach();
        codes += done.codes;
        ids.push(done.ids);
        stage_losses.push(done.losses.iter().fold(zero.copy(), |sum, (_, loss)| sum + loss));
        for (name, loss) in done.losses {
            match losses.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum = &*sum + loss,
                None => losses.push((name, loss)),
            }
        }
    }
    for _ in kept..stages {
        ids.push(ids[0].full_like(-1));
        stage_losses.push(zero.copy());
    }
    let ids = if stages == 1 { ids.remove(0) } else { Tensor::stack(&ids, -1) };
    Ok(ResidualPass { codes, ids, losses, stage_losses: Tensor::stack(&stage_losses, 0) })
}

/// The codes of each stage `[Q, ..., d]` of ids `[..., Q]` (`[...]` of a single stage); an id of -1 has a code of zeros.
/// `codes` gives the codes `[..., d]` of one stage's ids.
///
/// # Errors
/// The last axis is not Q, or an id is outside the codebook.
pub(crate) fn lookup_stages(
    ids: &Tensor,
    stages: i64,
    codebook_size: i64,
    codes: impl Fn(i64, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let ids = if stages == 1 { ids.unsqueeze(-1) } else { ids.shallow_clone() };
    if ids.size().last() != Some(&stages) {
        return Err(Error::shape("ids", &ids.size(), format!("[..., {stages}], one id for each stage")));
    }
    check_ids(&ids.masked_fill(&ids.eq(-1), 0), codebook_size)?;
    let of_stage = |stage: i64| {
        let ids = ids.select(-1, stage);
        Ok(codes(stage, &ids.clamp_min(0))?.masked_fill(&ids.lt(0).unsqueeze(-1), 0.0))
    };
    Ok(Tensor::stack(&(0..stages).map(of_stage).collect::<Result<Vec<_>>>()?, 0))
}
