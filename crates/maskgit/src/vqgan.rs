//! The tokenizers of MaskGIT (2D) and MAGVIT (3D): VQGANs without attention, in flax's conventions.
//!
//! Reference: google-research/maskgit `nets/vqgan_tokenizer.py`, google-research/magvit `models/enc_dec_3dcnn.py`.

mod blocks;
mod config;
mod conv;
mod discriminator;
mod tokenizer;

pub use blocks::{Decoder, Encoder, ResBlock, downsample_average, upsample_nearest};
pub use config::{Activation, ConvPadding, Dimensions, NormKind, ResBlockConfig, Upsampling, VqganConfig};
pub use discriminator::{BlurPool2d, DiscriminatorBlock, StyleDiscriminator, StyleDiscriminatorConfig};
pub use tokenizer::Vqgan;
