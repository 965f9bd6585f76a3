//! Ids of a reduced vocabulary, as taming-transformers' quantizer remaps them.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use video_core::{Error, Result};

use crate::bits::check_ids;

/// What a code that is not kept becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownId {
    /// One of the kept codes, drawn anew for each token.
    Random,
    /// Always this position.
    Fixed(i64),
    /// One position more, after all kept codes.
    Extra,
}

/// A codebook's kept codes: ids become positions in their list.
#[derive(Debug)]
pub struct IdRemap {
    used: Tensor,
    /// For each codebook id up to the largest kept one, its position or −1.
    position: Tensor,
    unknown: UnknownId,
}

impl IdRemap {
    /// Keeps the codes `used`, strictly ascending.
    ///
    /// # Errors
    /// The list is empty or not strictly ascending, or the fixed position is outside it.
    pub fn new(used: &[i64], unknown: UnknownId) -> Result<Self> {
        if used.is_empty()
            || used[0] < 0
            || used[used.len() - 1] > 1 << 30
            || used.windows(2).any(|pair| pair[0] >= pair[1])
        {
            return Err(Error::config("used", used, "at least one id of 0 to 2^30, strictly ascending"));
        }
        match unknown {
            UnknownId::Fixed(at) if !(0..used.len() as i64).contains(&at) => {
                Err(Error::config("unknown", at, format!("a position in 0..{}", used.len())))
            }
            _ => {
                let mut position = vec![-1i64; used[used.len() - 1] as usize + 1];
                used.iter().zip(0..).for_each(|(id, at)| position[*id as usize] = at);
                Ok(Self { used: Tensor::from_slice(used), position: Tensor::from_slice(&position), unknown })
            }
        }
    }

    /// How many ids there are after remapping.
    pub fn size(&self) -> i64 {
        self.used.size()[0] + i64::from(self.unknown == UnknownId::Extra)
    }

    /// Positions (int64, same shape) of codebook ids.
    pub fn to_used(&self, ids: &Tensor) -> Tensor {
        let kept = self.used.size()[0];
        let largest = self.position.size()[0] - 1;
        let positions = self.position.to_device(ids.device()).take(&ids.clamp(0, largest));
        let known = positions.ge(0).logical_and(&ids.ge(0)).logical_and(&ids.le(largest));
        let unknown = match self.unknown {
            UnknownId::Random => {
                Tensor::randint_low(0, kept, ids.size().as_slice(), (Kind::Int64, ids.device()))
            }
            UnknownId::Fixed(at) => ids.full_like(at),
            UnknownId::Extra => ids.full_like(kept),
        };
        positions.where_self(&known, &unknown)
    }

    /// Codebook ids (int64, same shape) of positions; the extra position becomes the first kept code.
    ///
    /// # Errors
    /// A position outside 0..[`IdRemap::size`].
    pub fn to_all(&self, positions: &Tensor) -> Result<Tensor> {
        check_ids(positions, self.size())?;
        let kept = self.used.size()[0];
        let positions = positions.masked_fill(&positions.ge(kept), 0);
        Ok(self.used.to_device(positions.device()).take(&positions))
    }
}
