//! MAGVIT (Yu et al., arXiv 2212.05199): one masked generator for many tasks on video, through condition videos
//! ([`ConditionVideo`]), a prefix of special tokens ([`MagvitTokens`]), COMMIT masks ([`crate::mask`]) and decoding that
//! refines the condition's tokens, too ([`decode_grid`]).

mod condition;
mod decode;
mod tokens;

pub use condition::{ConditionPadding, ConditionTask, ConditionVideo, Region};
pub use decode::{GridDecodeNoise, GridDecodeOptions, GridDecoded, GridPrompt, decode_grid};
pub use tokens::{MagvitTokens, SpecialToken};
