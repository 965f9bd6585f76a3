//! Videos and images on their way into a tokenizer and out of it again.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use tch::{Device, Kind, Tensor};
use video_core::Compression;
use video_data::{DecodeOptions, Fit, Size, VideoReader};

use crate::cli::ReadArgs;

/// Frames that are decoded, encoded and written at a time; a whole clip is never in memory.
const CHUNK_FRAMES: i64 = 16;

/// A video or an image as chunks of frames whose size the tokenizer's strides divide, and whose number is 1 + k·stride.
pub struct Input {
    source: Source,
    /// Rows of what was read, before padding.
    pub height: i64,
    /// Columns of what was read, before padding.
    pub width: i64,
    /// Frames per second.
    pub frame_rate: f64,
    /// Rows after padding.
    pub padded_height: i64,
    /// Columns after padding.
    pub padded_width: i64,
    /// Frames given so far, without padding.
    pub frames: i64,
    /// Whether the input is a single picture.
    pub is_image: bool,
    name: String,
    /// From so many frames on, the last is repeated where the time stride asks for more.
    pad_from: i64,
    compression: Compression,
    device: Device,
    last_frame: Option<Tensor>,
    ended: bool,
    bar: ProgressBar,
}

enum Source {
    Image(Option<Tensor>),
    Video(Box<VideoReader>),
}

impl Input {
    /// Opens a video or an image.
    ///
    /// # Errors
    /// The file is missing, cut short, no video; ffmpeg is absent; the arguments mean nothing.
    pub fn open(path: &Path, args: &ReadArgs, compression: Compression, device: Device) -> Result<Self> {
        let size = args.size.as_deref().map(parse_size).transpose()?;
        let name = path.display().to_string();
        if video_data::is_image(path) {
            let image = video_data::read_image(path, size)?;
            let (height, width) = (image.size()[3], image.size()[4]);
            let (padded_height, padded_width) = compression.pad_size(height, width);
            return Ok(Self {
                source: Source::Image(Some(image)),
                height,
                width,
                frame_rate: 1.0,
                padded_height,
                padded_width,
                frames: 0,
                is_image: true,
                name,
                pad_from: if args.pad { 1 } else { i64::MAX },
                compression,
                device,
                last_frame: None,
                ended: false,
                bar: ProgressBar::hidden(),
            });
        }
        let options = DecodeOptions {
            start_seconds: args.start,
            frame_rate: args.frame_rate,
            max_frames: args.frames,
            size,
        };
        let reader = VideoReader::open(path, &options)?;
        let (height, width) = (reader.height(), reader.width());
        let (padded_height, padded_width) = compression.pad_size(height, width);
        let bar = match reader.expected_frames() {
            Some(frames) => ProgressBar::new(frames),
            None => ProgressBar::no_length(),
        }
        .with_style(
            ProgressStyle::with_template("{pos}/{len} frames {bar:30} {per_sec}, {eta} left")
                .expect("a valid template"),
        );
        Ok(Self {
            height,
            width,
            frame_rate: reader.frame_rate(),
            padded_height,
            padded_width,
            frames: 0,
            is_image: false,
            name,
            pad_from: if args.pad { 1 } else { i64::MAX },
            compression,
            device,
            last_frame: None,
            ended: false,
            bar,
            source: Source::Video(Box::new(reader)),
        })
    }

    /// Pads a video of at least one full time stride as if `--pad` were given: for those who show what comes back and keep no
    /// tokens.
    #[must_use]
    pub fn padded_after_first_stride(self) -> Self {
        Self { pad_from: self.pad_from.min(1 + self.compression.time), ..self }
    }

    /// The next frames `[1, 3, t, H, W]`, padded; `None` at the end.
    ///
    /// # Errors
    /// The file breaks off, or its frames are not 1 + k·stride and `--pad` was not given.
    pub fn next_chunk(&mut self) -> Result<Option<Tensor>> {
        if self.ended {
            return Ok(None);
        }
        let chunk = match &mut self.source {
            Source::Image(image) => image.take(),
            Source::Video(reader) => reader.next_frames(CHUNK_FRAMES)?,
        };
        let Some(chunk) = chunk else {
            self.ended = true;
            self.bar.finish_and_clear();
            return self.padding();
        };
        let t = chunk.size()[2];
        self.frames += t;
        self.bar.inc(t as u64);
        let chunk =
            video_data::pad_video(&chunk, t, self.padded_height, self.padded_width)?.to_device(self.device);
        self.last_frame = Some(chunk.narrow(2, t - 1, 1));
        Ok(Some(chunk))
    }

    /// The repeated last frames that complete the time stride.
    fn padding(&mut self) -> Result<Option<Tensor>> {
        let Some(last) = self.last_frame.take() else {
            bail!("{}: no frame could be read; is --start beyond its end?", self.name);
        };
        let missing = self.compression.pad_frames(self.frames) - self.frames;
        if missing == 0 {
            return Ok(None);
        }
        ensure!(
            self.frames >= self.pad_from,
            "{}: {} frames, the tokenizer needs 1 + k·{}: give --pad to repeat the last frame up to {} (decoding removes it again), or --frames {} to crop",
            self.name,
            self.frames,
            self.compression.time,
            self.compression.pad_frames(self.frames),
            self.compression.crop_frames(self.frames)
        );
        Ok(Some(last.expand([-1, -1, missing, -1, -1], false)))
    }
}

/// `HxW` on the command line.
fn parse_size(text: &str) -> Result<Size> {
    let size =
        text.split_once(['x', '×']).and_then(|(h, w)| Some((h.parse::<i64>().ok()?, w.parse::<i64>().ok()?)));
    match size {
        Some((height, width)) if height > 0 && width > 0 => Ok(Size { height, width, fit: Fit::Cover }),
        _ => bail!("--size {text}: expected HEIGHTxWIDTH in pixels, such as 128x128"),
    }
}

/// Decoded frames on their way to a file; cuts padding off in time and space.
pub struct Output {
    sink: Sink,
    frames_left: i64,
    height: i64,
    width: i64,
}

enum Sink {
    Png(std::path::PathBuf),
    Gif { path: std::path::PathBuf, frames: Vec<Tensor>, frame_rate: f64 },
    Mp4(Box<video_data::VideoWriter>),
}

impl Output {
    /// Begins a file; its extension says of which kind. `frames` is `i64::MAX` where the length is not known yet.
    ///
    /// # Errors
    /// An extension that cannot be written, an unwritable folder.
    pub fn create(path: &Path, frames: i64, height: i64, width: i64, frame_rate: f64) -> Result<Self> {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let sink = match extension.as_str() {
            "png" if frames == 1 => Sink::Png(path.into()),
            "png" => bail!("{}: a PNG holds one picture; name an .mp4 or .gif for a video", path.display()),
            "gif" => Sink::Gif { path: path.into(), frames: Vec::new(), frame_rate },
            "mp4" => Sink::Mp4(Box::new(video_data::VideoWriter::create(path, width, height, frame_rate)?)),
            _ => {
                bail!("{}: expected a name that ends in .mp4, .gif or (for one picture) .png", path.display())
            }
        };
        Ok(Self { sink, frames_left: frames, height, width })
    }

    /// Appends frames `[1, 3, t, H', W']`, cropped.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn push(&mut self, frames: &Tensor) -> Result<()> {
        let t = frames.size()[2].min(self.frames_left);
        if t < 1 {
            return Ok(());
        }
        self.frames_left -= t;
        let frames = video_data::crop_video(frames, t, self.height, self.width)?
            .squeeze_dim(0)
            .to_device(Device::Cpu)
            .to_kind(Kind::Float);
        match &mut self.sink {
            Sink::Png(path) => video_data::write_png(path, &frames.select(1, 0))?,
            Sink::Gif { frames: all, .. } => all.push(frames),
            Sink::Mp4(writer) => writer.push(&frames)?,
        }
        Ok(())
    }

    /// Ends the file and puts it under its name.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(self) -> Result<()> {
        match self.sink {
            Sink::Png(_) => Ok(()),
            Sink::Gif { path, frames, frame_rate } => {
                video_data::write_gif(&path, &Tensor::cat(&frames, 1), frame_rate)
                    .with_context(|| format!("cannot write {}", path.display()))
            }
            Sink::Mp4(writer) => Ok(writer.finish()?),
        }
    }
}
