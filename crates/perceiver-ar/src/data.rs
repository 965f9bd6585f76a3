//! Sequences to train and evaluate on: the copy task, images byte by byte, crops and windows of documents.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use video_core::{Error, Result};

use crate::sequence::{EOS, RESERVED, SOS};

/// Events and their positions.
#[derive(Debug)]
pub struct Events {
    /// int64 `[N, L]`, or `[L]` of one document.
    pub ids: Tensor,
    /// int64 `[N, L, D]`, or `[L, D]`.
    pub positions: Tensor,
}

/// Windows of one document, padding behind the events and all-padding rows behind the windows.
#[derive(Debug)]
pub struct Windows {
    /// int64 `[N, T]`: inputs, or whole events that are still to be shifted.
    pub ids: Tensor,
    /// int64 `[N, T, D]`.
    pub positions: Tensor,
    /// int64 `[N]`: the number of events of the document up to each window's end; 0 of a filler.
    pub ends: Tensor,
}

/// Positions 1, 2, ... of n rows of a length, `[n, length, 1]`.
pub fn count_positions(n: i64, length: i64, device: Device) -> Tensor {
    let numbers = Tensor::arange_start(1, length + 1, (Kind::Int64, device));
    numbers.view([1, length, 1]).repeat([n, 1, 1])
}

/// The synthetic copy task: a start where asked for, `half` (int64 `[N, h]`, ids of data), the same mirrored, an end. The
/// second half is decided by the first.
///
/// # Errors
/// Another shape or kind, or an id that is no data.
pub fn copy_task(half: &Tensor, include_sos: bool) -> Result<Events> {
    let size = half.size();
    if size.len() != 2 || size.contains(&0) || half.kind() != Kind::Int64 {
        return Err(Error::shape("half", &size, "int64 [N, h] with no empty axis"));
    }
    let least = half.min().int64_value(&[]);
    if least < RESERVED {
        return Err(Error::input("half", format!("id {least}"), format!("ids of at least {RESERVED}")));
    }
    let column = |id: i64| Tensor::full([size[0], 1], id, (Kind::Int64, half.device()));
    let (start, end, mirrored) = (column(SOS), column(EOS), half.flip([1]));
    let mut parts = vec![half, &mirrored, &end];
    if include_sos {
        parts.insert(0, &start);
    }
    let ids = Tensor::cat(&parts, 1);
    let positions = count_positions(size[0], ids.size()[1], half.device());
    Ok(Events { ids, positions })
}

/// Draws copy tasks of a length from torch's generator, over all 256 bytes.
///
/// # Errors
/// A length whose body is not even and positive.
pub fn random_copy_task(n: i64, length: i64, include_sos: bool, device: Device) -> Result<Events> {
    let body = length - 1 - i64::from(include_sos);
    if body < 2 || body % 2 != 0 || n < 1 {
        return Err(Error::config(
            "sequence_length",
            length,
            "an even body between start and end, of 2 at least",
        ));
    }
    let half = Tensor::randint_low(RESERVED, RESERVED + 256, [n, body / 2], (Kind::Int64, device));
    copy_task(&half, include_sos)
}

/// Bytes, uint8 of any shape, as ids.
pub fn byte_events(bytes: &Tensor) -> Tensor {
    bytes.to_kind(Kind::Int64) + RESERVED
}

/// The order of an image's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageOrdering {
    /// Pixel by pixel, its three bytes together.
    #[default]
    #[serde(rename = "pixel_raster")]
    PixelRaster,
    /// All of red, then green, then blue.
    #[serde(rename = "r->g->b")]
    Planar,
}

/// An image, uint8 `[H, W, 3]`, byte by byte, with a start in front where asked for. Positions are column, row and channel,
/// each from 1, and from 2 behind a start, which is at 1, 1, 1.
///
/// # Errors
/// Another shape or kind.
pub fn image_events(image: &Tensor, ordering: ImageOrdering, include_sos: bool) -> Result<Events> {
    let size = image.size();
    if size.len() != 3 || size[2] != 3 || size.contains(&0) || image.kind() != Kind::Uint8 {
        return Err(Error::shape("image", &size, "uint8 [H, W, 3]"));
    }
    let options = (Kind::Int64, image.device());
    let (height, width) = (size[0], size[1]);
    let along = |n: i64, first: i64, shape: [i64; 3]| {
        Tensor::arange_start(first, first + n, options).view(shape).expand([height, width, 3], false)
    };
    let places = [along(width, 1, [1, width, 1]), along(height, 1, [height, 1, 1]), along(3, 1, [1, 1, 3])];
    let positions = Tensor::stack(&places, -1);
    let (mut ids, mut positions) = match ordering {
        ImageOrdering::PixelRaster => (byte_events(image).reshape([-1]), positions.reshape([-1, 3])),
        ImageOrdering::Planar => (
            byte_events(image).permute([2, 0, 1]).reshape([-1]),
            positions.permute([2, 0, 1, 3]).reshape([-1, 3]),
        ),
    };
    if include_sos {
        ids = Tensor::cat(&[Tensor::full([1], SOS, options), ids], 0);
        positions = Tensor::cat(&[Tensor::ones([1, 3], options), positions + 1], 0);
    }
    Ok(Events { ids, positions })
}

/// How documents are cropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropConfig {
    /// Slots of a window, one more than the model's inputs, as the shift takes one.
    pub slots: i64,
    /// Events of a window at least, where the document has as many. A training step wants Z + 1.
    pub min_crop: i64,
    /// Whether the document begins with a start: a window then holds it and one event at least.
    pub include_sos: bool,
}

impl CropConfig {
    /// The document `[L]` with padding in front, and how much of it. No window of it is short of `min_crop`.
    fn padding(&self, length: i64) -> Result<i64> {
        if self.slots < 1 || length < 1 {
            return Err(Error::config("slots", self.slots, "at least 1, and a document of at least 1 event"));
        }
        let least = self.min_crop.max(if self.include_sos { 2 } else { 1 });
        Ok(self.slots - self.slots.min(length).min(least))
    }

    /// How many starts there are to draw from for a document of so many events: a crop's is one of `0..starts`.
    ///
    /// # Errors
    /// No slot, or no event.
    pub fn starts(&self, length: i64) -> Result<i64> {
        Ok(self.padding(length)? + length - self.slots + 1)
    }

    /// The crops of a document at these starts: windows of the document behind its padding, which then goes to their end.
    ///
    /// # Errors
    /// A start that is none, or another shape.
    pub fn crops(&self, document: &Events, starts: &[i64]) -> Result<Windows> {
        let length = check_document(document)?;
        let (padding, limit) = (self.padding(length)?, self.starts(length)?);
        if let Some(odd) = starts.iter().find(|start| !(0..limit).contains(*start)) {
            return Err(Error::config("start", odd, format!("0..{limit}")));
        }
        let spans = starts.iter().map(|&start| {
            let end = start + self.slots - padding;
            ((start - padding).max(0), end)
        });
        windows(document, &spans.collect::<Vec<_>>(), self.slots)
    }

    /// Every crop of a document, that with most of the document first, and fillers up to a multiple of `batch`.
    ///
    /// # Errors
    /// As [`CropConfig::crops`].
    pub fn all_crops(&self, document: &Events, batch: i64) -> Result<Windows> {
        let starts: Vec<i64> = (0..self.starts(check_document(document)?)?).rev().collect();
        fill(self.crops(document, &starts)?, batch)
    }
}

/// Windows of a document's inputs (all events but the last) that end after each `block`, the first and shortest where they
/// do not come out even, each with up to `slots` inputs; and their targets, int64 `[N, slots]`. Scored on their last block,
/// they count every target once.
///
/// # Errors
/// A document of fewer than 2 events; no block, or one that is greater than a window.
pub fn block_windows(document: &Events, slots: i64, block: i64, batch: i64) -> Result<(Windows, Tensor)> {
    let inputs = check_document(document)? - 1;
    if inputs < 1 {
        return Err(Error::shape("document", &document.ids.size(), "at least 2 events"));
    }
    if !(1..=slots).contains(&block) {
        return Err(Error::config("block", block, format!("1 to the {slots} slots of a window")));
    }
    let first = if inputs % block == 0 { block } else { inputs % block };
    let spans: Vec<(i64, i64)> =
        (first..=inputs).step_by(block as usize).map(|end| ((end - slots).max(0), end)).collect();
    let shifted =
        Events { ids: document.ids.narrow(0, 1, inputs), positions: document.positions.narrow(0, 1, inputs) };
    let targets = fill(windows(&shifted, &spans, slots)?, batch)?.ids;
    Ok((fill(windows(document, &spans, slots)?, batch)?, targets))
}

fn check_document(document: &Events) -> Result<i64> {
    let (ids, positions) = (document.ids.size(), document.positions.size());
    if ids.len() != 1 || positions.len() != 2 || positions[0] != ids[0] {
        return Err(Error::shape("document", &ids, "events [L] and positions [L, D]"));
    }
    Ok(ids[0])
}

fn windows(document: &Events, spans: &[(i64, i64)], slots: i64) -> Result<Windows> {
    if spans.is_empty() {
        return Err(Error::input("windows", "none are asked for", "at least one"));
    }
    let cut = |x: &Tensor, start: i64, end: i64| x.narrow(0, start, end - start);
    let rows: Vec<(Tensor, Tensor)> = spans
        .iter()
        .map(|&(start, end)| {
            let behind = slots - (end - start);
            (
                cut(&document.ids, start, end).constant_pad_nd([0, behind]),
                cut(&document.positions, start, end).constant_pad_nd([0, 0, 0, behind]),
            )
        })
        .collect();
    let (ids, positions): (Vec<Tensor>, Vec<Tensor>) = rows.into_iter().unzip();
    let ends: Vec<i64> = spans.iter().map(|&(_, end)| end).collect();
    Ok(Windows {
        ids: Tensor::stack(&ids, 0),
        positions: Tensor::stack(&positions, 0),
        ends: Tensor::from_slice(&ends),
    })
}

/// Rows of padding up to a multiple of `batch`.
fn fill(windows: Windows, batch: i64) -> Result<Windows> {
    if batch < 1 {
        return Err(Error::config("batch_size", batch, "at least 1"));
    }
    let rows = windows.ids.size()[0];
    let more = (batch - rows % batch) % batch;
    Ok(Windows {
        ids: windows.ids.constant_pad_nd([0, 0, 0, more]),
        positions: windows.positions.constant_pad_nd([0, 0, 0, 0, 0, more]),
        ends: windows.ends.constant_pad_nd([0, more]),
    })
}
