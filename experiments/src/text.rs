//! Captions as conditions: the frozen text encoder that a run names, and its embeddings of many clips' captions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use text_encoder::{T5Config, TextEncoder};

/// Captions that are embedded together.
const BATCH: usize = 16;

/// Which text encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// A T5's folder: `config.json`, `tokenizer.json`, safetensors.
    pub encoder: PathBuf,
    /// Texts of more tokens are refused.
    #[serde(default = "max_tokens")]
    pub max_tokens: usize,
}

fn max_tokens() -> usize {
    128
}

impl TextConfig {
    /// Opens the encoder.
    ///
    /// # Errors
    /// A file of the folder is missing or malformed.
    pub fn open(&self, device: Device) -> Result<TextEncoder> {
        TextEncoder::open(&self.encoder, device, self.max_tokens)
            .with_context(|| format!("the text encoder at {}", self.encoder.display()))
    }

    /// Width of the embeddings, by the folder's config alone.
    ///
    /// # Errors
    /// There is no such config.
    pub fn dim(&self) -> Result<i64> {
        let path = self.encoder.join("config.json");
        let json = std::fs::read_to_string(&path)
            .with_context(|| format!("generator.text.encoder: cannot read {}", path.display()))?;
        Ok(T5Config::from_published(&json)?.d_model)
    }

    /// A short hash of the folder's config, tokenizer and weights.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let context = || format!("the text encoder at {}", self.encoder.display());
        let mut files = std::fs::read_dir(&self.encoder)
            .with_context(context)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<Vec<_>>>()
            .with_context(context)?;
        files.sort();
        let matters = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.ends_with(".safetensors") || ["config.json", "tokenizer.json"].contains(&name.as_ref())
        };
        let mut hasher = blake3::Hasher::new();
        for path in files.into_iter().filter(|path| matters(path)) {
            let mut file = std::fs::File::open(&path).with_context(context)?;
            std::io::copy(&mut file, &mut hasher).with_context(context)?;
        }
        Ok(hasher.finalize().to_hex()[..16].to_string())
    }
}

/// Embeddings of clips' captions, each different one once.
#[derive(Debug)]
pub struct Captions {
    /// half `[S, D]`: the tokens of all different captions, one behind another.
    states: Tensor,
    /// Tokens of each.
    lengths: Vec<i64>,
    /// Which of them each clip has.
    of_clip: Vec<i64>,
}

impl Captions {
    /// Embeds captions.
    ///
    /// # Errors
    /// A caption is too long; none is given.
    pub fn embed(captions: &[String], encoder: &TextEncoder) -> Result<Self> {
        ensure!(!captions.is_empty(), "there are no captions to embed");
        let mut numbers: BTreeMap<&str, i64> = BTreeMap::new();
        let mut different: Vec<&str> = Vec::new();
        let of_clip = captions
            .iter()
            .map(|caption| {
                *numbers.entry(caption).or_insert_with(|| {
                    different.push(caption);
                    different.len() as i64 - 1
                })
            })
            .collect();
        let (mut states, mut lengths) = (Vec::new(), Vec::new());
        for texts in different.chunks(BATCH) {
            let (embeddings, mask) =
                encoder.encode(texts).with_context(|| format!("a caption among {texts:?}"))?;
            let counts = Vec::<i64>::try_from(mask.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64))?;
            for (row, &count) in counts.iter().enumerate() {
                let kept = embeddings.get(row as i64).narrow(0, 0, count);
                states.push(kept.to_device(Device::Cpu).to_kind(Kind::Half));
            }
            lengths.extend(counts);
        }
        Ok(Self { states: Tensor::cat(&states, 0), lengths, of_clip })
    }

    /// Embeddings float `[B, L, D]`, zero at padding, and their mask, bool `[B, L]`, of the clips of these numbers.
    pub fn of(&self, clips: &[i64]) -> (Tensor, Tensor) {
        let starts: Vec<i64> = std::iter::once(0)
            .chain(self.lengths.iter().scan(0, |end, length| {
                *end += length;
                Some(*end)
            }))
            .collect();
        let captions: Vec<usize> = clips.iter().map(|&clip| self.of_clip[clip as usize] as usize).collect();
        let longest = captions.iter().map(|&caption| self.lengths[caption]).max().unwrap_or(1);
        let rows: Vec<Tensor> = captions
            .iter()
            .map(|&caption| {
                let row = self.states.narrow(0, starts[caption], self.lengths[caption]);
                row.constant_pad_nd([0, 0, 0, longest - self.lengths[caption]])
            })
            .collect();
        let lengths: Vec<i64> = captions.iter().map(|&caption| self.lengths[caption]).collect();
        let lengths = Tensor::from_slice(&lengths).unsqueeze(-1);
        let mask = Tensor::arange(longest, (Kind::Int64, Device::Cpu)).lt_tensor(&lengths);
        (Tensor::stack(&rows, 0).to_kind(Kind::Float), mask)
    }

    /// As tensors of a file.
    pub fn to_tensors(&self) -> [(String, Tensor); 3] {
        [
            ("captions.states".into(), self.states.shallow_clone()),
            ("captions.lengths".into(), Tensor::from_slice(&self.lengths)),
            ("captions.of_clip".into(), Tensor::from_slice(&self.of_clip)),
        ]
    }

    /// From the tensors of a file; `None` if they are not all there.
    pub fn from_tensors(tensors: &mut BTreeMap<String, Tensor>) -> Option<Self> {
        let states = tensors.remove("captions.states")?;
        let lengths = Vec::<i64>::try_from(tensors.remove("captions.lengths")?).ok()?;
        let of_clip = Vec::<i64>::try_from(tensors.remove("captions.of_clip")?).ok()?;
        let whole = lengths.iter().sum::<i64>() == states.size().first().copied().unwrap_or(0)
            && of_clip.iter().all(|&caption| (0..lengths.len() as i64).contains(&caption));
        whole.then_some(Self { states, lengths, of_clip })
    }
}
