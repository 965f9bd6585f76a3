//! Sequences of ids with padding behind them, and the masks that their latents see through.

use tch::{Kind, Tensor};
use video_core::{Error, Result};

/// The id of padding, behind a sequence only.
pub const PAD: i64 = 0;
/// The id of a sequence's end.
pub const EOS: i64 = 1;
/// The id of a sequence's start.
pub const SOS: i64 = 2;
/// Ids that are no data; a byte b is the id b + 3.
pub const RESERVED: i64 = 3;

/// The number of the first padding slot of each row of ids `[B, T]`, int64 `[B]`; T where there is none.
pub fn sequence_length(ids: &Tensor) -> Tensor {
    ids.ne(PAD).to_kind(Kind::Int64).cumprod(1, Kind::Int64).sum_dim_intlist(
        [1i64].as_slice(),
        false,
        Kind::Int64,
    )
}

/// The rows with their last token made padding, and of positions `[B, T, D]` the same rows.
pub fn truncate(ids: &Tensor) -> Tensor {
    let last = (sequence_length(ids) - 1).clamp_min(0).unsqueeze(1);
    ids.scatter_value(1, &last, PAD)
}

/// Inputs and targets of events `[B, T + 1]`, each `[B, T]`: the target of an input is the event after it.
pub fn shift(events: &Tensor) -> (Tensor, Tensor) {
    let slots = events.size()[1] - 1;
    (truncate(events).narrow(1, 0, slots), events.narrow(1, 1, slots))
}

/// The positions `[B, T, D]` of [`shift`]'s inputs, of those `[B, T + 1, D]` of the events.
pub fn shift_positions(positions: &Tensor) -> Tensor {
    positions.narrow(1, 0, positions.size()[1] - 1)
}

/// What latents may see.
#[derive(Debug)]
pub struct Masks {
    /// bool `[B, 1, Z, T]`: which latent sees which input.
    pub encoder: Tensor,
    /// bool `[B, 1, Z, Z]`: which latent sees which.
    pub processor: Tensor,
    /// int64 `[B, Z/K]`: the slot that a position's latents sit on; -1 where the sequence has none left.
    pub last_steps: Tensor,
}

/// The masks of latents on the last positions of ids `[B, T]`, `per_position` on each (section 3.1 of the paper: each sees
/// its own input and those before it, and latents as far). `latent_keep`, bool `[B, Z]`, hides latents from others.
///
/// # Errors
/// Latents that do not share out.
pub fn masks(ids: &Tensor, latents: i64, per_position: i64, latent_keep: Option<&Tensor>) -> Result<Masks> {
    let (batch, slots) = (ids.size()[0], ids.size()[1]);
    if latents < 1 || per_position < 1 || latents % per_position != 0 {
        let expected = format!("a positive multiple of num_latents_per_position = {per_position}");
        return Err(Error::config("z_index_dim", latents, expected));
    }
    let positions = latents / per_position;
    let places = Tensor::arange_start(-positions, 0, (Kind::Int64, ids.device()));
    let last_steps = (sequence_length(ids).unsqueeze(1) + places).clamp_min(-1);
    let steps = last_steps.repeat_interleave_self_int(per_position, 1, None);
    let (query, key) = (steps.view([batch, 1, latents, 1]), steps.view([batch, 1, 1, latents]));
    let slot = Tensor::arange(slots, (Kind::Int64, ids.device()));
    let encoder = query.ge_tensor(&slot).logical_and(&ids.gt(PAD).view([batch, 1, 1, slots]));
    let mut processor = query.ge_tensor(&key).logical_and(&key.ge(0));
    if let Some(keep) = latent_keep {
        processor = processor.logical_and(&keep.view([batch, 1, 1, latents]));
    }
    let itself = Tensor::eye(latents, (Kind::Bool, ids.device()));
    Ok(Masks { encoder, processor: processor.logical_or(&itself), last_steps })
}
