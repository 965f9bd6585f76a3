//! The whole tokenizer.

use layers::{fold_time, unfold_time};
use quantizers::{Mode, Quantized, Quantizer};
use tch::{Tensor, nn, no_grad};
use video_core::{
    Compression, Error, GridShape, Result, StreamDecoder, StreamEncoder, TokenGrid, VideoShape,
    VideoTokenizer,
};

use super::blocks::{Decoder, Encoder};
use super::config::{Dimensions, VqganConfig};

/// Encoder, quantizer and decoder. Variables under `encoder`, `quantizer`, `decoder`.
///
/// Videos are `[B, 3, T, H, W]` in [-1, 1], as everywhere; the networks read and write [0, 1]. An image network takes frames one
/// by one.
#[derive(Debug)]
pub struct Vqgan {
    config: VqganConfig,
    encoder: Encoder,
    quantizer: Box<dyn Quantizer>,
    decoder: Decoder,
}

impl Vqgan {
    /// Builds it.
    ///
    /// # Errors
    /// The config is invalid, or the quantizer has several ids a position.
    pub fn new(path: &nn::Path, config: &VqganConfig) -> Result<Self> {
        let encoder = Encoder::new(&(path / "encoder"), config)?;
        let quantizer = config
            .quantizer
            .build(&(path / "quantizer"), config.embedding_dim)
            .map_err(|error| error.within("quantizer"))?;
        if quantizer.num_ids() != 1 {
            return Err(Error::config("quantizer", &config.quantizer, "one id a position"));
        }
        let decoder = Decoder::new(&(path / "decoder"), config)?;
        Ok(Self { config: config.clone(), encoder, quantizer, decoder })
    }

    /// Its configuration.
    pub fn config(&self) -> &VqganConfig {
        &self.config
    }

    /// Its bottleneck.
    pub fn quantizer(&self) -> &dyn Quantizer {
        self.quantizer.as_ref()
    }

    /// The weight at which a GAN's adaptive weight compares gradients.
    pub fn last_layer(&self) -> &Tensor {
        self.decoder.last_layer()
    }

    /// Features `[B, t, h, w, D]` of a video.
    ///
    /// # Errors
    /// The shape is one that cannot be encoded.
    pub fn features(&self, video: &Tensor) -> Result<Tensor> {
        let shape = VideoShape::of(video)?;
        self.grid_shape(shape)?;
        let pixels = (video + 1.0) / 2.0;
        let features = match self.config.block.dimensions {
            Dimensions::Image => unfold_time(&self.encoder.forward(&fold_time(&pixels)), shape.batch),
            Dimensions::Video => self.encoder.forward(&pixels),
        };
        Ok(features.permute([0, 2, 3, 4, 1]))
    }

    /// The video, not clamped, of embeddings `[B, t, h, w, D]`.
    ///
    /// # Errors
    /// Another width.
    pub fn pixels(&self, embeddings: &Tensor) -> Result<Tensor> {
        let size = embeddings.size();
        if size.len() != 5 || size[4] != self.config.embedding_dim {
            let expected = format!("[B, t, h, w, {}]", self.config.embedding_dim);
            return Err(Error::shape("embeddings", &size, expected));
        }
        let x = embeddings.permute([0, 4, 1, 2, 3]);
        let pixels = match self.config.block.dimensions {
            Dimensions::Image => unfold_time(&self.decoder.forward(&fold_time(&x)), size[0]),
            Dimensions::Video => self.decoder.forward(&x),
        };
        Ok(pixels * 2.0 - 1.0)
    }

    /// The reconstruction, not clamped, and what the quantizer says of it, its losses among it: a training step's forward
    /// pass.
    ///
    /// # Errors
    /// As [`Vqgan::features`].
    pub fn forward(&self, video: &Tensor, mode: Mode) -> Result<(Tensor, Quantized)> {
        let quantized = self.quantizer.quantize(&self.features(video)?, mode)?;
        Ok((self.pixels(&quantized.embeddings)?, quantized))
    }

    fn frames_alone(&self) -> Result<()> {
        match self.config.block.dimensions {
            Dimensions::Image => Ok(()),
            Dimensions::Video => Err(Error::unsupported(
                "the 3D VQGAN",
                "stream",
                "its convolutions see the future; a causal tokenizer (causal-conv) can",
            )),
        }
    }
}

impl VideoTokenizer for Vqgan {
    fn encode(&self, video: &Tensor) -> Result<TokenGrid> {
        no_grad(|| {
            let quantized = self.quantizer.quantize(&self.features(video)?, Mode::Eval)?;
            match quantized.ids {
                Some(ids) => TokenGrid::new(ids),
                None => Err(Error::unsupported(
                    "a VQGAN with a continuous bottleneck",
                    "encode to ids",
                    "it has none",
                )),
            }
        })
    }

    fn decode(&self, tokens: &TokenGrid) -> Result<Tensor> {
        no_grad(|| Ok(self.pixels(&self.quantizer.lookup(tokens.ids())?)?.clamp(-1.0, 1.0)))
    }

    fn vocabulary_size(&self) -> Option<i64> {
        self.quantizer.codebook_size()
    }

    /// Of the video network, `time` counts every latent frame: it is not causal, and 4·k frames give k.
    fn compression(&self) -> Compression {
        let [time, height, width] = self.config.strides();
        let bits = match self.quantizer.codebook_size() {
            Some(size) => (size as f64).log2(),
            None => 32.0 * self.config.embedding_dim as f64,
        };
        Compression { time, height, width, bits_per_token: bits }
    }

    fn grid_shape(&self, shape: VideoShape) -> Result<GridShape> {
        if shape.channels != 3 {
            return Err(Error::input("channels", shape.channels.to_string(), "3"));
        }
        let [time, height, width] = self.config.strides();
        for (name, size, stride) in
            [("frames", shape.frames, time), ("height", shape.height, height), ("width", shape.width, width)]
        {
            if size < 1 || size % stride != 0 {
                let padded = (size.max(1) + stride - 1) / stride * stride;
                let expected = format!("a multiple of {stride}: pad to {padded}");
                return Err(Error::input(name, size.to_string(), expected));
            }
        }
        let (frames, height, width) = (shape.frames / time, shape.height / height, shape.width / width);
        Ok(GridShape { frames, height, width })
    }

    fn stream_encoder(&self) -> Result<Box<dyn StreamEncoder + '_>> {
        self.frames_alone()?;
        Ok(Box::new(Frames(self)))
    }

    fn stream_decoder(&self) -> Result<Box<dyn StreamDecoder + '_>> {
        self.frames_alone()?;
        Ok(Box::new(Frames(self)))
    }
}

/// A stream of frames of which none knows of another.
struct Frames<'a>(&'a Vqgan);

impl StreamEncoder for Frames<'_> {
    fn push(&mut self, frames: &Tensor) -> Result<Option<TokenGrid>> {
        self.0.encode(frames).map(Some)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

impl StreamDecoder for Frames<'_> {
    fn push(&mut self, tokens: &TokenGrid) -> Result<Tensor> {
        self.0.decode(tokens)
    }
}
