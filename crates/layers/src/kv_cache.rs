//! Keys and values of the positions that were decoded already.

use tch::{Tensor, no_grad};
use video_core::{Error, Result};

/// The keys and values of the last positions, at most `window` of them, for one attention layer: older ones drop out.
///
/// Entries lie in a buffer with room behind them, so that appending copies what is new and nothing else; when the room is
/// used up the window moves to a new buffer, which at a constant window happens once in as many appended positions.
#[derive(Debug)]
pub struct KvCache {
    window: i64,
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    /// `[B, H, room, d]`
    keys: Tensor,
    /// `[B, H, room, e]`
    values: Tensor,
    start: i64,
    end: i64,
}

impl KvCache {
    /// An empty cache of at most `window` positions.
    pub fn new(window: i64) -> Self {
        Self { window, held: None }
    }

    /// Positions at most.
    pub fn window(&self) -> i64 {
        self.window
    }

    /// Positions held.
    pub fn len(&self) -> i64 {
        self.held.as_ref().map_or(0, |held| held.end - held.start)
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keys `[B, H, n, d]` and values `[B, H, n, e]` of all positions held, views, the newest last; `None` while empty.
    pub fn entries(&self) -> Option<(Tensor, Tensor)> {
        let held = self.held.as_ref()?;
        let view = |buffer: &Tensor| buffer.narrow(2, held.start, held.end - held.start);
        Some((view(&held.keys), view(&held.values)))
    }

    /// Adds keys `[B, H, n, d]` and values `[B, H, n, e]` behind those held, without gradients, and gives all that are held
    /// then, as [`KvCache::entries`] does.
    ///
    /// # Errors
    /// More positions than the window; another batch size, number of heads or width than before.
    pub fn append(&mut self, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let size = keys.size();
        let fits = size.len() == 4 && values.dim() == 4 && values.size()[..3] == size[..3];
        if !fits || size[2] > self.window {
            let expected = format!("[B, H, n, d] with n at most {}, as the values have", self.window);
            return Err(Error::shape("keys to cache", &size, expected));
        }
        if let Some(held) = &self.held {
            for (what, new, old) in
                [("keys to cache", keys, &held.keys), ("values to cache", values, &held.values)]
            {
                let (new, mut old) = (new.size(), old.size());
                old[2] = size[2];
                if new != old {
                    let expected = format!("{old:?}, as the cache was begun: batch, heads and width stay");
                    return Err(Error::shape(what, &new, expected));
                }
            }
        }
        no_grad(|| {
            self.make_room(keys, values);
            let Some(held) = &mut self.held else { return };
            for (buffer, new) in [(&held.keys, keys), (&held.values, values)] {
                buffer.narrow(2, held.end, size[2]).copy_(new);
            }
            held.end += size[2];
            held.start = held.start.max(held.end - self.window);
        });
        Ok(self.entries().unwrap_or_else(|| (keys.shallow_clone(), values.shallow_clone())))
    }

    /// Makes a buffer with room for what is to be appended.
    fn make_room(&mut self, keys: &Tensor, values: &Tensor) {
        let new = keys.size()[2];
        let (room, end) = self.held.as_ref().map_or((0, 0), |held| (held.keys.size()[2], held.end));
        if end + new <= room && self.held.is_some() {
            return;
        }
        let kept = self.len().min(self.window - new);
        let room = (2 * (kept + new)).max(64).min(2 * self.window);
        let grown = |old: Option<&Tensor>, like: &Tensor| {
            let mut size = like.size();
            size[2] = room;
            let buffer = Tensor::zeros(&size, (like.kind(), like.device()));
            if let Some(old) = old.filter(|_| kept > 0) {
                buffer.narrow(2, 0, kept).copy_(&old.narrow(2, end - kept, kept));
            }
            buffer
        };
        let old = self.held.take();
        let keys = grown(old.as_ref().map(|held| &held.keys), keys);
        let values = grown(old.as_ref().map(|held| &held.values), values);
        self.held = Some(Held { keys, values, start: 0, end: kept });
    }
}
