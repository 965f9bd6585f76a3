//! Positions: tables that are added, rotations, and counting back from the end.

use tch::{Device, Kind, Tensor};
use video_core::{Error, Result};

use crate::sequence::sequence_length;

/// Sines in the first half of the columns, cosines in the second, `[rows, size]`, of frequencies that fall geometrically
/// from 1/`min_scale` to 1/`max_scale`, both included. The last column of an odd size is 0.
///
/// # Errors
/// No row, fewer than 2 columns, or scales that are not positive.
pub fn sinusoidal_table(rows: i64, size: i64, min_scale: f64, max_scale: f64) -> Result<Tensor> {
    check_table(rows, size)?;
    if !(min_scale > 0.0 && max_scale > 0.0 && min_scale.is_finite() && max_scale.is_finite()) {
        return Err(Error::config("scales", (min_scale, max_scale), "two positive numbers"));
    }
    let half = size / 2;
    let fall = (max_scale / min_scale).ln() / (half - 1).max(1) as f64;
    let frequencies = (numbers(half) * -fall).exp() * min_scale;
    Ok(waves(&(numbers(rows).unsqueeze(1) * frequencies), size - 2 * half))
}

/// Sines, then cosines, `[rows, 2·⌊size/2⌋]`, of π · position · band: positions from -1 to 1, bands from 1 to rows/2, both
/// included. With `concat_position`, a column more in front: the position.
///
/// # Errors
/// No row, or fewer than 2 columns.
pub fn fourier_table(rows: i64, size: i64, concat_position: bool) -> Result<Tensor> {
    check_table(rows, size)?;
    let options = (Kind::Double, Device::Cpu);
    let positions = Tensor::linspace(-1.0, 1.0, rows, options).unsqueeze(1);
    let bands = Tensor::linspace(1.0, rows as f64 / 2.0, size / 2, options);
    let waves = waves(&(&positions * bands * std::f64::consts::PI), 0);
    Ok(if concat_position { Tensor::cat(&[positions.to_kind(Kind::Float), waves], 1) } else { waves })
}

fn check_table(rows: i64, size: i64) -> Result<()> {
    if !(1..=1 << 24).contains(&rows) || !(2..=1 << 16).contains(&size) {
        return Err(Error::config("table", (rows, size), "at least 1 row and 2 columns"));
    }
    Ok(())
}

/// 0, 1, .. as float64.
fn numbers(n: i64) -> Tensor {
    Tensor::arange(n, (Kind::Double, Device::Cpu))
}

/// Sines, cosines and columns of zeros, as float32.
fn waves(angles: &Tensor, zeros: i64) -> Tensor {
    Tensor::cat(&[angles.sin(), angles.cos()], 1).constant_pad_nd([0, zeros]).to_kind(Kind::Float)
}

/// Positions that count back from the last token of each sequence (0 there, int64 `[B, T]` like the ids). Padding goes on
/// counting as if it stood in front.
pub fn terminal_relative_positions(ids: &Tensor) -> Tensor {
    let slots = ids.size()[1];
    let length = sequence_length(ids).unsqueeze(1);
    let back = length - 1 - Tensor::arange(slots, (Kind::Int64, ids.device()));
    // Behind the end, -1 becomes the greatest.
    back.remainder(slots)
}

/// Rotation of queries and keys by their positions (Su et al., arXiv 2104.09864), of a share of the channels and heads.
///
/// Its wavelengths grow to `max_wavelength` itself, one step more than elsewhere.
#[derive(Debug)]
pub struct Rotary {
    /// Channels of a head that are rotated, even.
    channels: i64,
    /// Radians per position, `[channels/2]`.
    frequencies: Tensor,
    /// bool `[1, H, 1, 1]`; none where all are rotated.
    heads: Option<Tensor>,
}

/// What a [`Rotary`] is made for.
#[derive(Clone, Copy, Debug)]
pub struct RotaryConfig {
    /// H.
    pub heads: i64,
    /// Width of a head.
    pub head_dim: i64,
    /// The first of each so many heads are rotated. 0: the first of all.
    pub head_group_size: i64,
    /// Share of the channels, in (0, 1].
    pub fraction_to_rotate: f64,
    /// Share of the heads of each group, in [0, 1].
    pub fraction_heads_to_rotate: f64,
    /// The longest wavelength over 2π.
    pub max_wavelength: i64,
}

impl Rotary {
    /// Builds it.
    ///
    /// # Errors
    /// A share or a size is out of range.
    pub fn new(config: &RotaryConfig, device: Device) -> Result<Self> {
        let &RotaryConfig { heads, head_dim, head_group_size, .. } = config;
        if heads < 1 || head_dim < 1 {
            return Err(Error::config(
                "heads",
                (heads, head_dim),
                "at least one head of at least one channel",
            ));
        }
        if !(config.fraction_to_rotate > 0.0 && config.fraction_to_rotate <= 1.0) {
            return Err(Error::config("fraction_to_rotate", config.fraction_to_rotate, "a number in (0, 1]"));
        }
        if !(0.0..=1.0).contains(&config.fraction_heads_to_rotate) {
            let share = config.fraction_heads_to_rotate;
            return Err(Error::config("fraction_heads_to_rotate", share, "a number in [0, 1]"));
        }
        if config.max_wavelength < 1 {
            return Err(Error::config("max_wavelength", config.max_wavelength, "at least 1"));
        }
        let group = if head_group_size == 0 { heads } else { head_group_size };
        if group < 1 || heads % group != 0 {
            return Err(Error::config(
                "head_group_size",
                head_group_size,
                format!("0 or a divisor of {heads}"),
            ));
        }
        let bands = (head_dim as f64 * config.fraction_to_rotate / 2.0).floor() as i64;
        let exponents = Tensor::linspace(0.0, 1.0, bands, (Kind::Double, Device::Cpu));
        let frequencies = (exponents * -(config.max_wavelength as f64).ln()).exp();
        let rotated = (config.fraction_heads_to_rotate * group as f64).floor() as i64;
        let heads = (rotated < group).then(|| {
            let number = Tensor::arange(heads, (Kind::Int64, device)).remainder(group);
            number.lt(rotated).view([1, -1, 1, 1])
        });
        Ok(Self {
            channels: 2 * bands,
            frequencies: frequencies.to_kind(Kind::Float).to_device(device),
            heads,
        })
    }

    /// Rotates `[B, H, T, d]` by positions int64 `[B, T]`.
    ///
    /// # Panics
    /// Other shapes.
    pub fn rotate(&self, x: &Tensor, positions: &Tensor) -> Tensor {
        if self.channels == 0 {
            return x.shallow_clone();
        }
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * &self.frequencies;
        let (sin, cos) = (angles.sin().unsqueeze(1), angles.cos().unsqueeze(1));
        let rest = x.size()[3] - self.channels;
        let pairs = x.narrow(-1, 0, self.channels).unflatten(-1, [-1, 2]);
        let (a, b) = (pairs.select(-1, 0), pairs.select(-1, 1));
        let turned = Tensor::stack(&[&a * &cos - &b * &sin, &b * cos + a * sin], -1).flatten(-2, -1);
        let turned =
            if rest == 0 { turned } else { Tensor::cat(&[turned, x.narrow(-1, self.channels, rest)], -1) };
        match &self.heads {
            Some(heads) => turned.where_self(heads, x),
            None => turned,
        }
    }
}
