//! Text to embeddings, from a folder of a published checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tch::{Device, Kind, Tensor, nn, no_grad};
use tokenizers::Tokenizer;
use video_core::{Error, Result};

use crate::t5::{T5Config, T5Encoder};

/// T5's id of padding.
const PAD: i64 = 0;

/// A frozen encoder with its tokenizer.
#[derive(Debug)]
pub struct TextEncoder {
    tokenizer: Tokenizer,
    encoder: T5Encoder,
    device: Device,
    max_tokens: usize,
}

impl TextEncoder {
    /// Opens a folder with `config.json`, `tokenizer.json` and `model.safetensors`, or the shards that
    /// `model.safetensors.index.json` names. Weights that the encoder has not, the decoder's, are left aside.
    ///
    /// Texts of more than `max_tokens` ids, the final `</s>` among them, are refused.
    ///
    /// # Errors
    /// A file is missing or malformed, or lacks a tensor of the encoder.
    pub fn open(folder: &Path, device: Device, max_tokens: usize) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(|source| Error::io(path, source))
        };
        let config = T5Config::from_published(&read("config.json")?)?;
        let tokenizer = read("tokenizer.json")?.parse::<Tokenizer>().map_err(|e| {
            Error::input("tokenizer.json", e.to_string(), "a tokenizer of Hugging Face's tokenizers")
        })?;
        let mut variables = nn::VarStore::new(device);
        let encoder = T5Encoder::new(&variables.root(), &config)?;
        let shards: BTreeSet<String> = if folder.join("model.safetensors").is_file() {
            BTreeSet::from(["model.safetensors".to_string()])
        } else {
            let index: Index = serde_json::from_str(&read("model.safetensors.index.json")?).map_err(|e| {
                Error::input("model.safetensors.index.json", e.to_string(), "a weight_map of shards")
            })?;
            index.weight_map.into_values().collect()
        };
        let mut missing = variables.variables();
        for shard in shards {
            for (name, tensor) in Tensor::read_safetensors(folder.join(&shard))? {
                // Some files have the table under its second name only.
                let name = if name == "encoder.embed_tokens.weight" { "shared.weight" } else { &name };
                let Some(mut variable) = missing.remove(name) else { continue };
                if variable.size() != tensor.size() {
                    let expected = format!("{:?}, as config.json says", variable.size());
                    return Err(Error::shape(format!("{name} in {shard}"), &tensor.size(), expected));
                }
                no_grad(|| variable.copy_(&tensor));
            }
        }
        if let Some(name) = missing.keys().min() {
            return Err(Error::input("weights", format!("no tensor {name}"), "a whole T5 encoder"));
        }
        variables.freeze();
        Ok(Self { tokenizer, encoder, device, max_tokens })
    }

    /// Width of the embeddings.
    pub fn dim(&self) -> i64 {
        self.encoder.config().d_model
    }

    /// Embeddings `[B, L, D]`, zero at padding, and their mask, bool `[B, L]`: a [`video_core::Condition::text`]. L is the
    /// longest text's number of ids.
    ///
    /// # Errors
    /// No text, or one that is too long.
    pub fn encode(&self, texts: &[&str]) -> Result<(Tensor, Tensor)> {
        let ids = texts.iter().map(|text| self.ids(text)).collect::<Result<Vec<_>>>()?;
        let Some(longest) = ids.iter().map(Vec::len).max().filter(|&n| n > 0) else {
            return Err(Error::input("texts", "nothing to encode", "at least one text"));
        };
        let rows: Vec<i64> = ids
            .iter()
            .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(PAD, longest - row.len())))
            .collect();
        let kept: Vec<bool> =
            ids.iter().flat_map(|row| (0..longest).map(|position| position < row.len())).collect();
        let shape = [texts.len() as i64, longest as i64];
        let ids = Tensor::from_slice(&rows).view(shape).to_device(self.device);
        let mask = Tensor::from_slice(&kept).view(shape).to_device(self.device);
        let states = no_grad(|| self.encoder.forward(&ids, &mask))?;
        let embeddings = states.masked_fill(&mask.logical_not().unsqueeze(-1), 0.0);
        Ok((embeddings.to_kind(Kind::Float), mask))
    }

    fn ids(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self
            .tokenizer
            .encode(text, true)
            .map_err(|e| Error::input("text", e.to_string(), "text that the tokenizer takes"))?;
        let ids = encoding.get_ids();
        if ids.len() > self.max_tokens {
            return Err(Error::input(
                "text",
                format!("{} tokens", ids.len()),
                format!("at most {}, the encoder's limit: shorten it", self.max_tokens),
            ));
        }
        Ok(ids.iter().map(|&id| i64::from(id)).collect())
    }
}

/// Which shard has which tensor.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}
