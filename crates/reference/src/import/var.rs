//! VAR (FoundationVision): the tokenizer of images and the transformer.

use tch::{Kind, Tensor};

use crate::weights::Weights;

/// Tables that the published files carry beside the weights.
const TABLES: [&str; 3] = ["lvl_1L", "attn_bias_for_masking", "zero_k_bias"];

/// The tensors of a checkpoint as ours: all have our names. Tables are left out, and the counter of hits, which is not
/// published, starts at none.
pub(crate) fn our_tensors(tensors: &Weights) -> Weights {
    let mut ours = Weights::new();
    for (name, tensor) in tensors {
        let (parent, leaf) =
            name.rsplit_once('.').map_or(("", name.as_str()), |(parent, leaf)| (parent, leaf));
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
