//! The ids of MAGVIT's sequences: codes, classes, and special tokens in front of the grid.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use video_core::{Error, Result};

use crate::mask::MaskedTokens;

/// Ids that count from the end of the word table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(i64)]
pub enum SpecialToken {
    /// [`crate::mask::MASK`].
    Mask = -1,
    /// Behind prefix frames.
    Separator = -2,
    /// Task: nothing but a class is given; latent frames, too.
    FullGeneration = -3,
    /// Task.
    FramePrediction = -4,
    /// Task.
    FrameInterpolation = -5,
    /// Task; in published multi-task weights the one of inpainting, too.
    Outpainting = -6,
    /// Task; a later correction.
    Inpainting = -7,
    /// Padding.
    Pad = -15,
}

/// Rows of the table that are special where there are tasks.
const TASK_SLOTS: i64 = 16;

/// Which ids there are: K codes, C classes, the absent class, and special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MagvitTokens {
    /// K.
    pub codebook_size: i64,
    /// C.
    pub num_classes: i64,
    /// Whether sequences begin with a task token.
    pub multi_task: bool,
}

impl MagvitTokens {
    /// Ids behind the codes: [`crate::TransformerConfig::num_special`].
    pub fn num_special(self) -> i64 {
        self.num_classes + 1 + if self.multi_task { TASK_SLOTS } else { 1 }
    }

    /// Tokens in front of the grid.
    pub fn prefix_len(self) -> i64 {
        if self.multi_task { 2 } else { 1 }
    }

    /// `[task token if there are tasks][class, or the absent class]`, `[B, 1]` or `[B, 2]`, weight 0. Without condition,
    /// `uncond_task` and the absent class stand there.
    ///
    /// `labels` int64 `[B]`, or none.
    ///
    /// # Errors
    /// Labels of another number or outside the classes.
    pub fn prefix(
        self,
        batch: i64,
        device: Device,
        task: SpecialToken,
        uncond_task: SpecialToken,
        labels: Option<&Tensor>,
    ) -> Result<MaskedTokens> {
        let same = |id: i64| Tensor::full([batch, 1], id, (Kind::Int64, device));
        let absent = same(self.codebook_size + self.num_classes);
        let class = match labels {
            None => absent.shallow_clone(),
            Some(labels) => {
                self.check_labels(labels, batch)?;
                labels.view([batch, 1]) + self.codebook_size
            }
        };
        let class = MaskedTokens::nothing_masked(&class, Some(&absent));
        if !self.multi_task {
            return Ok(class);
        }
        let task = MaskedTokens::nothing_masked(&same(task as i64), Some(&same(uncond_task as i64)));
        Ok(MaskedTokens::concatenate(&[task, class]))
    }

    fn check_labels(self, labels: &Tensor, batch: i64) -> Result<()> {
        if labels.size() != [batch] || labels.kind() != Kind::Int64 {
            return Err(Error::shape("class labels", &labels.size(), format!("int64 [{batch}]")));
        }
        let [least, most] = [labels.min(), labels.max()].map(|label| label.int64_value(&[]));
        if least < 0 || most >= self.num_classes {
            return Err(Error::input(
                "class labels",
                format!("{least} to {most}"),
                format!("0..{}, the classes that the model was built for", self.num_classes),
            ));
        }
        Ok(())
    }

    /// The deprecated prefix of frame prediction: condition ids `[B, ...]` and a separator behind the other prefix.
    pub fn frame_prefix(ids: &Tensor) -> MaskedTokens {
        let ids = ids.flatten(1, -1);
        let separator =
            Tensor::full([ids.size()[0], 1], SpecialToken::Separator as i64, (Kind::Int64, ids.device()));
        MaskedTokens::nothing_masked(&Tensor::cat(&[ids, separator], 1), None)
    }
}
