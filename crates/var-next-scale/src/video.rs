//! Next-scale prediction of videos, over pyramids that grow in space and in time. This form is ours: no published VAR has it.
//!
//! A causal tokenizer makes 1 + n·c latent frames of a clip, the first of the first frame alone. That latent frame is coded
//! with an image's pyramid, exactly as the image would be. Every further chunk of c latent frames has a pyramid of its own,
//! whose scales (t, h, w) grow in space and in time up to (c, H, W); codebook and φ are those of the image. Ids lie in a row:
//!
//! ```text
//! | image: 1×1×1, 1×2×2, ... 1×H×W | chunk 1: 1×1×1, ... c×H×W | chunk 2: ... |
//! ```
//!
//! The transformer is the image's, [`Var`](crate::Var), with positions for chunks beside those for the image. Attention is
//! block-causal over all scales of the row, so that:
//!
//! - an image is a clip without chunks: the same weights give the same logits, whether or not frames follow;
//! - tokens of a chunk depend on no frame behind the chunk, and predictions at a scale on no token of it or behind it;
//! - a clip is continued from its tokens so far, chunk by chunk, with cached keys and values.
//!
//! What goes in at a scale of a chunk is, as for an image, the sum of the chunk's coarser scales (the class at the first), and
//! beside it the finished sum of the pyramid before, at the same size: the finest tokens of that one reach the network only so.

mod generator;
mod scales;
mod tokenizer;

pub use generator::{SpaceTimeVar, SpaceTimeVarConfig};
pub use scales::SpaceTimePyramid;
pub use tokenizer::{SpaceTimeOutput, SpaceTimeVqvae, SpaceTimeVqvaeConfig};
