//! What a causal layer does in front of its input: pads it where the clip starts, or puts the frames before it there.

use serde::{Deserialize, Serialize};
use tch::Tensor;
use video_core::{Error, Result};

/// What stands in the padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PadMode {
    /// Zeros.
    #[default]
    Constant,
    /// Copies of the border.
    Replicate,
    /// The input mirrored at the border.
    Reflect,
}

impl PadMode {
    /// libtorch's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Replicate => "replicate",
            Self::Reflect => "reflect",
        }
    }
}

/// What stands in front of a clip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipStart {
    /// Zeros (MAGVIT-v2).
    #[default]
    Zeros,
    /// Copies of the first frame (Cosmos, VidTok).
    FirstFrame,
    /// What the [`PadMode`] of space says, and zeros in time and space where the padding is not shorter than the clip
    /// (magvit2-pytorch). [`PadMode::Reflect`] shows LATER frames to the first outputs: not causal there; it exists for
    /// models that were trained so.
    AsSpace,
}

/// How many frames stand in front of a clip, for a layer of time kernel kt, stride st, dilation dt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimePadding {
    /// dt·(kt−1), whatever the stride: T = 1 + st·k frames give 1 + k, and output 0 sees frame 0 alone (MAGVIT-v2).
    #[default]
    Full,
    /// dt·(kt−1) + 1 − st: T = st·k frames give k, and output j sees frames up to st·j + st−1 (magvit2-pytorch,
    /// Cosmos, VidTok). A negative number crops.
    LessStride,
}

/// A layer's window in time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeWindow {
    pub kernel: i64,
    pub stride: i64,
    pub dilation: i64,
    pub padding: TimePadding,
}

impl TimeWindow {
    /// Frames in front of the clip; negative: frames to crop.
    pub fn start_padding(&self) -> i64 {
        match self.padding {
            TimePadding::Full => self.dilation * (self.kernel - 1),
            TimePadding::LessStride => self.context(),
        }
    }

    /// Frames of the input that later outputs still need once a chunk is done; negative: frames of the next chunk that
    /// no output sees.
    pub fn context(&self) -> i64 {
        self.dilation * (self.kernel - 1) + 1 - self.stride
    }

    /// Whether a chunk of this many frames ends where a window ends, so that nothing is left over.
    pub fn aligned(&self, frames: i64, starts_clip: bool) -> bool {
        match (self.padding, starts_clip) {
            (TimePadding::Full, true) => frames >= 1 && (frames - 1) % self.stride == 0,
            _ => frames >= 1 && frames % self.stride == 0,
        }
    }

    /// Refuses a chunk that leaves frames over.
    pub fn check_chunk(&self, x: &Tensor, context: &TimeContext) -> Result<()> {
        let frames = x.size()[2];
        if self.aligned(frames, context.starts_clip()) {
            return Ok(());
        }
        let first = context.starts_clip() && self.padding == TimePadding::Full;
        let expected = format!("{}k·{} frames", if first { "1 + " } else { "" }, self.stride);
        Err(Error::input("chunk", format!("{frames} frames"), expected))
    }

    /// The input `[B, C, T, ...]` behind the frames before it: those of the context, or padding where the clip starts.
    /// The context then holds what the next chunk needs.
    pub fn extend(&self, x: &Tensor, start: PadMode, mut context: Option<&mut TimeContext>) -> Tensor {
        let extended = match self.before(x, start, context.as_deref_mut()) {
            Before::Crop(frames) => x.narrow(2, frames, x.size()[2] - frames),
            Before::Frames(front) => Tensor::cat(&[&front, x], 2),
        };
        self.keep(&extended, context);
        extended
    }

    /// SiLU of the input, behind the frames before it, which had it already, or padding of the SiLU where the clip starts.
    /// Without gradients: the activation is written to where it shall lie, and the input may be overwritten.
    pub fn extend_silu(
        &self,
        mut x: Tensor,
        start: PadMode,
        mut context: Option<&mut TimeContext>,
    ) -> Tensor {
        if start != PadMode::Constant && context.as_ref().is_none_or(|context| context.starts_clip()) {
            return self.extend(&x.silu_(), start, context);
        }
        let extended = match self.before(&x, start, context.as_deref_mut()) {
            Before::Crop(frames) => {
                let _ = x.silu_();
                x.narrow(2, frames, x.size()[2] - frames)
            }
            Before::Frames(front) => {
                let (b, c, frames, h, w) = x.size5().expect("a video has five axes");
                let before = front.size()[2];
                let room = Tensor::empty([b, before + frames, h, w, c], (x.kind(), x.device()));
                let room = room.permute([0, 4, 1, 2, 3]);
                room.narrow(2, 0, before).copy_(&front);
                let _ = x.silu_out(&room.narrow(2, before, frames));
                room
            }
        };
        self.keep(&extended, context);
        extended
    }

    fn before(&self, x: &Tensor, start: PadMode, context: Option<&mut TimeContext>) -> Before {
        let Some(TimeContext(kept)) = context else { return padding(x, self.start_padding(), start) };
        match kept.take() {
            None => padding(x, self.start_padding(), start),
            Some(front) if self.context() > 0 => Before::Frames(front),
            Some(_) => padding(x, self.context(), start),
        }
    }

    fn keep(&self, extended: &Tensor, context: Option<&mut TimeContext>) {
        if let Some(TimeContext(kept)) = context {
            let frames = self.context().max(0);
            // A copy: a view would hold the whole chunk in memory.
            *kept = Some(extended.narrow(2, extended.size()[2] - frames, frames).copy());
        }
    }
}

/// What a layer does in front of its input.
enum Before {
    /// Drops so many frames.
    Crop(i64),
    /// Puts these there.
    Frames(Tensor),
}

/// The last input frames of one causal layer, which its next outputs see: the layer's whole memory of a clip.
#[derive(Debug, Default)]
pub struct TimeContext(Option<Tensor>);

impl TimeContext {
    /// At the start of a clip.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether no chunk has passed yet.
    pub fn starts_clip(&self) -> bool {
        self.0.is_none()
    }
}

/// The contexts of all causal layers of a network, in the order in which the layers run.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    contexts: Vec<TimeContext>,
    next: usize,
    inside_clip: bool,
}

/// Where a network's causal layers find the frames before their input: nowhere, as the input is a whole clip, or in the
/// contexts of a stream.
#[derive(Debug)]
pub(crate) enum Past {
    WholeClip,
    Stream(Stream),
}

/// The most that one layer's output for a piece should take, in numbers; see [`Past::in_pieces`].
const PIECE: i64 = 1 << 21;

impl Past {
    pub fn stream() -> Self {
        Self::Stream(Stream::default())
    }

    /// For one pass over a whole clip: in pieces, unless gradients need every activation in any case.
    pub fn of_clip(with_gradients: bool) -> Self {
        if with_gradients { Self::WholeClip } else { Self::stream() }
    }

    /// Whether the present input holds the clip's first frame.
    pub fn starts_clip(&self) -> bool {
        match self {
            Self::WholeClip => true,
            Self::Stream(stream) => !stream.inside_clip,
        }
    }

    /// The context of the layer that runs now. Every layer asks once a chunk.
    pub fn context(&mut self) -> Option<&mut TimeContext> {
        let Self::Stream(stream) = self else { return None };
        if stream.next == stream.contexts.len() {
            stream.contexts.push(TimeContext::new());
        }
        stream.next += 1;
        Some(&mut stream.contexts[stream.next - 1])
    }

    /// All layers have run.
    pub fn end_chunk(&mut self) {
        if let Self::Stream(stream) = self {
            stream.next = 0;
            stream.inside_clip = true;
        }
    }

    /// Runs some layers over one piece of `[B, C, T, H, W]` after the other and joins what they give, so that their
    /// activations stay near the processor's cache and in memory that is used again. It is the same as in one piece.
    ///
    /// Pieces end where windows of stride `align` end. `per_frame`: how many numbers a frame of the largest activation has.
    pub fn in_pieces(
        &mut self,
        x: &Tensor,
        align: i64,
        per_frame: i64,
        mut run: impl FnMut(&Tensor, &mut Self) -> Tensor,
    ) -> Tensor {
        let (frames, starts_clip) = (x.size()[2], self.starts_clip());
        let step = (PIECE / (per_frame * align)).max(1) * align;
        let Self::Stream(Stream { next: first_layer, .. }) = *self else { return run(x, self) };
        // A clip's first frame goes alone, as it is cheap to convolve there.
        let (mut start, mut end) = (0, if starts_clip { 1 } else { step });
        let mut outputs = Vec::new();
        while start < frames {
            end = end.min(frames);
            if let Self::Stream(stream) = self {
                stream.next = first_layer;
                stream.inside_clip = !starts_clip || start > 0;
            }
            outputs.push(run(&x.narrow(2, start, end - start), self));
            (start, end) = (end, end + step);
        }
        if let Self::Stream(stream) = self {
            stream.inside_clip = !starts_clip;
        }
        if outputs.len() == 1 { outputs.remove(0) } else { Tensor::cat(&outputs, 2) }
    }
}

/// The positions of one frame of a batch `[B, C, T, H, W]`.
pub(crate) fn frame_size(x: &Tensor) -> i64 {
    let size = x.size();
    size[0] * size[3] * size[4]
}

/// Padding in front of `[B, C, T, ...]`; a negative number of frames crops.
fn padding(x: &Tensor, frames: i64, mode: PadMode) -> Before {
    if frames <= 0 {
        return Before::Crop(-frames);
    }
    let mut size = x.size();
    size[2] = frames;
    Before::Frames(match mode {
        PadMode::Constant => {
            // Channels last, like the video behind: concatenation keeps the order only if all parts agree.
            let channels = size.remove(1);
            size.push(channels);
            Tensor::zeros(&size, (x.kind(), x.device())).movedim_int(-1, 1)
        }
        PadMode::Replicate => x.narrow(2, 0, 1).expand(&size, true),
        PadMode::Reflect => x.narrow(2, 1, frames).flip([2]),
    })
}
