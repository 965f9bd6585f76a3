//! Ids as numbers: bit orders, splitting one id into several and packing several into one.
//!
//! The order of the bits is part of a tokenizer's contract with every generator trained on its ids, hence explicit
//! everywhere ([`BitOrder`]).

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use video_core::{Error, Result};

/// Which channel carries which binary weight, in an id of d bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BitOrder {
    /// Channel i weighs 2^i: MAGVIT-v2, Open-MAGVIT2.
    #[default]
    LsbFirst,
    /// Channel i weighs 2^(d−1−i): lucidrains, 1X, Cosmos.
    MsbFirst,
}

impl BitOrder {
    /// The binary exponent of each of `bits` channels, int64 `[bits]`.
    fn exponents(self, bits: i64, device: Device) -> Tensor {
        let up = Tensor::arange(bits, (Kind::Int64, device));
        match self {
            Self::LsbFirst => up,
            Self::MsbFirst => (bits - 1) - up,
        }
    }
}

/// The ids int64 `[...]` of bits `[..., d]` (bool, or any number where nonzero is one), d ≤ 62.
pub fn pack_bits(bits: &Tensor, order: BitOrder) -> Tensor {
    let exponents = order.exponents(bits.size().last().copied().unwrap_or(0), bits.device());
    bits.ne(0).to_kind(Kind::Int64).bitwise_left_shift(&exponents).sum_dim_intlist(
        [-1i64].as_slice(),
        false,
        Kind::Int64,
    )
}

/// The bits `[..., d]` (bool) of ids `[...]`: the inverse of [`pack_bits`].
pub fn unpack_bits(ids: &Tensor, bits: i64, order: BitOrder) -> Tensor {
    ids.unsqueeze(-1).bitwise_right_shift(&order.exponents(bits, ids.device())).bitwise_and(1).ne(0)
}

/// Splits ids `[...]` of sum(`parts`) bits into one id per part (token factorisation, MAGVIT-v2 section 3.2; `[9, 9]`
/// of 2^18). Part j covers the next `parts[j]` channels and is itself packed in `order`.
///
/// # Errors
/// A part is empty, or the parts have more than 62 bits together.
pub fn split_id(ids: &Tensor, parts: &[i64], order: BitOrder) -> Result<Vec<Tensor>> {
    Ok(part_shifts(parts, order)?
        .into_iter()
        .zip(parts)
        .map(|(shift, bits)| ids.bitwise_right_shift_tensor_scalar(shift).bitwise_and((1i64 << bits) - 1))
        .collect())
}

/// Joins what [`split_id`] split.
///
/// # Errors
/// As [`split_id`]; or there are not as many ids as parts, or an id exceeds its part.
pub fn join_id(ids: &[Tensor], parts: &[i64], order: BitOrder) -> Result<Tensor> {
    let shifts = part_shifts(parts, order)?;
    if ids.len() != parts.len() {
        return Err(Error::input(
            "ids",
            format!("{} of them", ids.len()),
            format!("one for each of {parts:?}"),
        ));
    }
    let mut joined: Option<Tensor> = None;
    for ((part, bits), shift) in ids.iter().zip(parts).zip(shifts) {
        check_ids(part, 1 << bits)?;
        let shifted = part.bitwise_left_shift_tensor_scalar(shift);
        joined = Some(match joined {
            None => shifted,
            Some(sum) => sum + shifted,
        });
    }
    joined.ok_or_else(|| Error::config("parts", parts, "at least one part"))
}

fn part_shifts(parts: &[i64], order: BitOrder) -> Result<Vec<i64>> {
    let total: i64 = parts.iter().sum();
    if parts.is_empty() || parts.iter().any(|bits| !(1..=62).contains(bits)) || total > 62 {
        return Err(Error::config("parts", parts, "parts of at least one bit, 62 bits together"));
    }
    let mut before = 0;
    Ok(parts
        .iter()
        .map(|bits| {
            let shift = match order {
                BitOrder::LsbFirst => before,
                BitOrder::MsbFirst => total - before - bits,
            };
            before += bits;
            shift
        })
        .collect())
}

/// Packs the G ids `[..., G]` of one position into one id `[...]`, in mixed radix: the first id changes fastest.
/// `sizes` are the G codebook sizes.
///
/// # Errors
/// The packed id would not fit 2^62, the last axis is not G, or an id is outside its codebook (quantize-dropout's -1 too).
pub fn pack_ids(ids: &Tensor, sizes: &[i64]) -> Result<Tensor> {
    let basis = radix_basis(sizes)?;
    if ids.size().last() != Some(&(sizes.len() as i64)) {
        return Err(Error::shape("ids", &ids.size(), format!("[..., {}], one id per codebook", sizes.len())));
    }
    for (group, size) in sizes.iter().enumerate() {
        check_ids(&ids.select(-1, group as i64), *size)?;
    }
    let basis = Tensor::from_slice(&basis).to_device(ids.device());
    Ok((ids * basis).sum_dim_intlist([-1i64].as_slice(), false, Kind::Int64))
}

/// The G ids `[..., G]` of packed ids `[...]`: the inverse of [`pack_ids`].
///
/// # Errors
/// The sizes' product exceeds 2^62, or an id exceeds that product.
pub fn unpack_ids(packed: &Tensor, sizes: &[i64]) -> Result<Tensor> {
    let basis = radix_basis(sizes)?;
    check_ids(packed, sizes.iter().product())?;
    Ok(mixed_radix_digits(packed, &basis, sizes))
}

/// Digits `[..., G]` of numbers `[...]` in mixed radix.
pub(crate) fn mixed_radix_digits(numbers: &Tensor, basis: &[i64], sizes: &[i64]) -> Tensor {
    let device = numbers.device();
    numbers
        .unsqueeze(-1)
        .divide_tensor_mode(&Tensor::from_slice(basis).to_device(device), "floor")
        .remainder_tensor(&Tensor::from_slice(sizes).to_device(device))
}

/// The exclusive cumulative product of `sizes`.
pub(crate) fn radix_basis(sizes: &[i64]) -> Result<Vec<i64>> {
    let refused = || {
        Error::config(
            "codebook sizes",
            sizes,
            "at least one, each ≥ 1, with a product of at most 2^62: use fewer",
        )
    };
    if sizes.is_empty() || sizes.iter().any(|size| *size < 1) {
        return Err(refused());
    }
    let mut basis = Vec::with_capacity(sizes.len());
    let mut product = 1i64;
    for size in sizes {
        basis.push(product);
        product = product.checked_mul(*size).filter(|p| *p <= 1 << 62).ok_or_else(refused)?;
    }
    Ok(basis)
}

/// Refuses ids outside 0..size, and what is no int64. Waits for the device.
pub(crate) fn check_ids(ids: &Tensor, size: i64) -> Result<()> {
    if ids.kind() != Kind::Int64 {
        return Err(Error::input("ids", format!("element type {:?}", ids.kind()), "int64"));
    }
    if ids.numel() == 0 {
        return Ok(());
    }
    let (low, high) = (ids.min().int64_value(&[]), ids.max().int64_value(&[]));
    if low < 0 || high >= size {
        let wrong = if low < 0 { low } else { high };
        return Err(Error::input("ids", format!("{wrong} is outside the codebook"), format!("0..{size}")));
    }
    Ok(())
}
