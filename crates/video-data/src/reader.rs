//! Decoding: any video that ffmpeg reads, frame chunk by frame chunk, and images.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;

use tch::{Kind, Tensor};

use crate::ffmpeg::{complaint, ffmpeg_path, probe};
use crate::{Error, Result};

/// How a picture comes to a wanted size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Scaled until it covers the size, then its centre is cut out.
    Cover,
    /// Scaled in each axis on its own.
    Stretch,
}

/// A wanted size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub height: i64,
    /// Columns.
    pub width: i64,
    /// How to come there.
    pub fit: Fit,
}

/// Which part of a video is decoded, and to what.
#[derive(Clone, Debug, Default)]
pub struct DecodeOptions {
    /// Where to begin.
    pub start_seconds: f64,
    /// Frames per second to decode at; the file's own if none.
    pub frame_rate: Option<f64>,
    /// Stop after so many frames.
    pub max_frames: Option<u64>,
    /// The size to decode to; the file's own if none.
    pub size: Option<Size>,
}

/// A video being decoded. Memory does not grow with its length.
#[derive(Debug)]
pub struct VideoReader {
    path: PathBuf,
    child: Child,
    stdout: ChildStdout,
    stderr: Option<JoinHandle<String>>,
    height: i64,
    width: i64,
    frame_rate: f64,
    expected_frames: Option<u64>,
    frames: u64,
    ended: bool,
}

impl VideoReader {
    /// Begins to decode.
    ///
    /// # Errors
    /// The file is missing or holds no video, ffmpeg is absent, an option means nothing.
    pub fn open(path: &Path, options: &DecodeOptions) -> Result<Self> {
        let info = probe(path)?;
        let positive = |field: &str, value: f64| match value > 0.0 && value.is_finite() {
            true => Ok(value),
            false => Err(Error::config(field, value, "a number above 0")),
        };
        let frame_rate = match options.frame_rate {
            Some(rate) => positive("clip.frame_rate", rate)?,
            None => info.frame_rate,
        };
        let (height, width) =
            options.size.map_or((info.height, info.width), |size| (size.height, size.width));
        if height < 1 || width < 1 {
            return Err(Error::config("clip.size", format!("{height}x{width}"), "at least 1x1"));
        }
        let mut filters = Vec::new();
        if options.frame_rate.is_some() {
            filters.push(format!("fps={frame_rate}"));
        }
        match options.size.map(|size| size.fit) {
            Some(Fit::Cover) => filters.push(format!(
                "scale={width}:{height}:force_original_aspect_ratio=increase:flags=area,crop={width}:{height}"
            )),
            Some(Fit::Stretch) => filters.push(format!("scale={width}:{height}:flags=area")),
            None => {}
        }
        let mut command = Command::new(ffmpeg_path()?);
        command.args(["-hide_banner", "-nostdin", "-loglevel", "error"]);
        if options.start_seconds > 0.0 {
            command.args(["-ss", &options.start_seconds.to_string()]);
        }
        command.arg("-i").arg(path).args(["-map", "0:v:0", "-an", "-sn"]);
        if let Some(frames) = options.max_frames {
            command.args(["-frames:v", &frames.to_string()]);
        }
        if !filters.is_empty() {
            command.args(["-vf", &filters.join(",")]);
        }
        if options.frame_rate.is_none() {
            command.args(["-fps_mode", "passthrough"]);
        }
        command.args(["-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Error::unreadable(path, format!("ffmpeg does not start: {e}")))?;
        let (Some(stdout), Some(mut errors)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(Error::unreadable(path, "ffmpeg gives no output"));
        };
        // Drained on its own thread: a full pipe would stop ffmpeg.
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = errors.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let expected_frames = info
            .duration
            .map(|seconds| ((seconds - options.start_seconds).max(0.0) * frame_rate).round() as u64)
            .map(|frames| options.max_frames.map_or(frames, |most| frames.min(most)))
            .or(options.max_frames);
        Ok(Self {
            path: path.into(),
            child,
            stdout,
            stderr: Some(stderr),
            height,
            width,
            frame_rate,
            expected_frames,
            frames: 0,
            ended: false,
        })
    }

    /// Rows of the decoded frames.
    pub fn height(&self) -> i64 {
        self.height
    }

    /// Columns of the decoded frames.
    pub fn width(&self) -> i64 {
        self.width
    }

    /// Frames per second of the decoded frames.
    pub fn frame_rate(&self) -> f64 {
        self.frame_rate
    }

    /// How many frames the container promises.
    pub fn expected_frames(&self) -> Option<u64> {
        self.expected_frames
    }

    /// The next frames as bytes `[t, H, W, 3]`, at most `count`; empty at the end.
    ///
    /// # Errors
    /// The video breaks off or is damaged: ffmpeg's complaint, and how far it came.
    pub(crate) fn next_bytes(&mut self, count: i64) -> Result<Vec<u8>> {
        let frame = (self.height * self.width * 3) as usize;
        let mut bytes = vec![0u8; frame * count.max(1) as usize];
        let mut filled = 0;
        while !self.ended && filled < bytes.len() {
            match self.stdout.read(&mut bytes[filled..]) {
                Ok(0) => self.end(filled % frame != 0)?,
                Ok(read) => filled += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::unreadable(&self.path, error.to_string())),
            }
        }
        bytes.truncate(filled);
        self.frames += (filled / frame) as u64;
        Ok(bytes)
    }

    /// The next frames `[1, 3, t, H, W]` in [-1, 1], at most `count`; `None` at the end.
    ///
    /// # Errors
    /// The video breaks off or is damaged: ffmpeg's complaint, and how far it came.
    pub fn next_frames(&mut self, count: i64) -> Result<Option<Tensor>> {
        let bytes = self.next_bytes(count)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let t = bytes.len() as i64 / (self.height * self.width * 3);
        let frames = Tensor::from_slice(&bytes).view([1, t, self.height, self.width, 3]);
        Ok(Some(to_float(&frames.permute([0, 4, 1, 2, 3]))))
    }

    /// ffmpeg has closed its output: did all go well?
    fn end(&mut self, within_a_frame: bool) -> Result<()> {
        self.ended = true;
        let status = self.child.wait().map_err(|e| Error::unreadable(&self.path, e.to_string()))?;
        let errors = self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        if status.success() && errors.trim().is_empty() && !within_a_frame {
            return Ok(());
        }
        let problem = format!(
            "the video is damaged or cut short after {} frames ({}); repair it, or read the part before with --frames",
            self.frames,
            complaint(&errors)
        );
        Err(Error::unreadable(&self.path, problem))
    }
}

impl Drop for VideoReader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes 0 to 255 as floats in [-1, 1].
pub(crate) fn to_float(bytes: &Tensor) -> Tensor {
    (bytes.to_kind(Kind::Float) / 127.5 - 1.0).contiguous()
}

/// A whole video `[1, 3, T, H, W]` in [-1, 1]; for videos that fit into memory.
///
/// # Errors
/// As [`VideoReader`]'s; also a video without any frame.
pub fn read_video(path: &Path, options: &DecodeOptions) -> Result<Tensor> {
    let mut reader = VideoReader::open(path, options)?;
    let mut chunks = Vec::new();
    while let Some(frames) = reader.next_frames(32)? {
        chunks.push(frames);
    }
    if chunks.is_empty() {
        return Err(Error::unreadable(path, "no frame could be read; is the start beyond the end?"));
    }
    Ok(Tensor::cat(&chunks, 2))
}

/// Whether a path's name is that of an image (PNG, JPEG, WebP, BMP).
pub fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    ["png", "jpg", "jpeg", "webp", "bmp"].contains(&extension.as_str())
}

/// Whether a path's name is that of a video.
pub fn is_video(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    ["mp4", "avi", "mkv", "mov", "webm", "m4v", "mpg", "mpeg", "gif", "ts", "flv", "wmv", "y4m"]
        .contains(&extension.as_str())
}

/// An image as one frame, `[1, 3, 1, H, W]` in [-1, 1].
///
/// # Errors
/// The file is missing or no image.
pub fn read_image(path: &Path, size: Option<Size>) -> Result<Tensor> {
    let (bytes, height, width) = image_bytes(path, size)?;
    let frame = Tensor::from_slice(&bytes).view([1, 1, height, width, 3]);
    Ok(to_float(&frame.permute([0, 4, 1, 2, 3])))
}

/// An image's bytes `[H, W, 3]`, H and W.
pub(crate) fn image_bytes(path: &Path, size: Option<Size>) -> Result<(Vec<u8>, i64, i64)> {
    if !path.is_file() {
        return Err(Error::Missing(path.into()));
    }
    let picture =
        image::open(path).map_err(|e| Error::unreadable(path, format!("no image that can be read ({e})")))?;
    let picture = match size {
        None => picture,
        Some(Size { height, width, fit }) => {
            let (w, h) = (width.max(1) as u32, height.max(1) as u32);
            let filter = image::imageops::FilterType::CatmullRom;
            match fit {
                Fit::Cover => picture.resize_to_fill(w, h, filter),
                Fit::Stretch => picture.resize_exact(w, h, filter),
            }
        }
    };
    let picture = picture.to_rgb8();
    let (width, height) = picture.dimensions();
    Ok((picture.into_raw(), height.into(), width.into()))
}
