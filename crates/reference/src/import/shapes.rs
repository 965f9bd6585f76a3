//! The tensors of a checkpoint below the prefix that its owner gave them, and what their shapes tell.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::ImportError;
use crate::weights::{Weights, WeightsError};

/// The tensors below a prefix, without it.
pub(super) struct Shapes<'a>(BTreeMap<&'a str, &'a Tensor>);

impl<'a> Shapes<'a> {
    /// Finds the prefix by one tensor that every checkpoint of the system has.
    pub fn below(tensors: &'a Weights, anchor: &str) -> Result<Self, ImportError> {
        let prefix = |name: &'a str| -> Option<&'a str> {
            name.strip_suffix(anchor).filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        };
        let prefix = tensors.keys().find_map(|name| prefix(name));
        let prefix = prefix.ok_or_else(|| WeightsError::Missing(anchor.to_string()))?;
        let below = tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)));
        Ok(Self(below.collect()))
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().copied()
    }

    /// The tensor of a name.
    pub fn get(&self, name: &str) -> Option<&'a Tensor> {
        self.0.get(name).copied()
    }

    /// The shape of a tensor of `N` axes, none of them empty.
    pub fn of<const N: usize>(&self, name: &str) -> Result<[i64; N], ImportError> {
        let tensor = self.get(name).ok_or_else(|| WeightsError::Missing(name.to_string()))?;
        let size = tensor.size();
        match <[i64; N]>::try_from(size.as_slice()) {
            Ok(shape) if !shape.contains(&0) => Ok(shape),
            _ => Err(ImportError::Malformed(format!("tensor {name} of shape {size:?}, expected {N} axes"))),
        }
    }

    /// How many of a numbered series of tensors there are. No published model has anything near 32 of a kind; what lies
    /// beyond is left for the model to refuse.
    pub fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..32).take_while(|&index| self.0.contains_key(name(index).as_str())).count()
    }

    /// The tensors of these parts under our names, as float32. A name without one of ours stays: the model will refuse it.
    pub fn rename(&self, parts: &[&str], ours: impl Fn(&str) -> Option<String>) -> Weights {
        let chosen = self.0.iter().filter(|(name, _)| parts.iter().any(|part| name.starts_with(part)));
        let renamed = chosen.map(|(name, tensor)| {
            let tensor = if tensor.is_floating_point() { tensor.to_kind(Kind::Float) } else { tensor.copy() };
            (ours(name).unwrap_or_else(|| (*name).to_string()), tensor)
        });
        renamed.collect()
    }
}

/// The greatest common divisor.
pub(super) fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
