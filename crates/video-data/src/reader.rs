//! Decoding: any video that ffmpeg reads, frame chunk by frame chunk, and images.

use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::thread::JoinHandle;

use image::{DynamicImage, ImageDecoder, ImageReader};
use tch::{Kind, Tensor};

use crate::ffmpeg::{VideoInfo, command, complaint, input, probe_at};
use crate::location::Location;
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
    max_frames: Option<u64>,
    frames: u64,
    ended: bool,
}

impl VideoReader {
    /// Begins to decode.
    ///
    /// # Errors
    /// The file is missing or holds no video, ffmpeg is absent, an option means nothing.
    pub fn open(path: &Path, options: &DecodeOptions) -> Result<Self> {
        let location = Location::file(path);
        let info = probe_at(&location)?;
        Self::open_at(&location, &info, options, None)
    }

    /// The same for a video that was probed already, with so many decoding threads (ffmpeg's choice if none).
    pub(crate) fn open_at(
        location: &Location,
        info: &VideoInfo,
        options: &DecodeOptions,
        threads: Option<usize>,
    ) -> Result<Self> {
        let path = location.path.as_path();
        let frame_rate = options.frame_rate.unwrap_or(info.frame_rate);
        if !(frame_rate > 0.0 && frame_rate.is_finite()) {
            return Err(Error::config("clip.frame_rate", frame_rate, "frames per second above 0"));
        }
        let (height, width) =
            options.size.map_or((info.height, info.width), |size| (size.height, size.width));
        if height < 1 || width < 1 {
            return Err(Error::config("clip.size", format!("{height}x{width}"), "at least 1x1"));
        }
        let mut command = command()?;
        command.args(["-loglevel", "error"]);
        if let Some(threads) = threads {
            command.args(["-threads", &threads.to_string()]);
        }
        if options.start_seconds > 0.0 {
            command.args(["-ss", &options.start_seconds.to_string()]);
        }
        input(&mut command, location);
        command.args(["-map", "0:v:0", "-an", "-sn", "-fps_mode", "passthrough"]);
        if let Some(frames) = options.max_frames {
            command.args(["-frames:v", &frames.to_string()]);
        }
        command.args(["-vf", &filters(info, options), "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]);
        let mut child = command
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
            max_frames: options.max_frames,
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
                Ok(0) => self.end((filled / frame) as u64, filled % frame != 0)?,
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

    /// ffmpeg has closed its output, after so many frames more than were handed out: did all go well?
    fn end(&mut self, more: u64, within_a_frame: bool) -> Result<()> {
        self.ended = true;
        let status = self.child.wait().map_err(|e| Error::unreadable(&self.path, e.to_string()))?;
        let errors = self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let frames = self.frames + more;
        // What is damaged behind the frames that were asked for does not matter.
        let all_there = self.max_frames.is_some_and(|most| frames >= most);
        if all_there || (status.success() && errors.trim().is_empty() && !within_a_frame) {
            return Ok(());
        }
        let problem = format!(
            "the video is damaged or cut short after {frames} frames ({}); repair it, or read fewer frames",
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

/// ffmpeg's filters: frame rate first, so that frames that are dropped are not scaled.
fn filters(info: &VideoInfo, options: &DecodeOptions) -> String {
    let mut filters = options.frame_rate.map(|rate| format!("fps={rate},")).unwrap_or_default();
    // Named even where nothing changes: some videos change their size half-way.
    let (height, width, crop) = match options.size {
        None => (info.height, info.width, None),
        Some(Size { height, width, fit: Fit::Stretch }) => (height, width, None),
        Some(Size { height, width, fit: Fit::Cover }) => {
            let shown = info.width as f64 * info.pixel_aspect;
            let factor = (height as f64 / info.height as f64).max(width as f64 / shown);
            let scaled = |length: f64, least: i64| ((length * factor).round() as i64).max(least);
            (scaled(info.height as f64, height), scaled(shown, width), Some((height, width)))
        }
    };
    filters += &format!("scale={width}:{height}:flags=bicubic+accurate_rnd+full_chroma_int");
    if let Some((height, width)) = crop {
        filters += &format!(",crop={width}:{height}");
    }
    filters
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

fn extension_is(path: &Path, known: &[&str]) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    known.contains(&extension.as_str())
}

/// Whether a path's name is that of an image (PNG, JPEG, WebP, BMP).
pub fn is_image(path: &Path) -> bool {
    extension_is(path, &["png", "jpg", "jpeg", "webp", "bmp"])
}

/// Whether a path's name is that of a video.
pub fn is_video(path: &Path) -> bool {
    const KNOWN: &[&str] = &[
        "mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "ts", "m2ts", "mts", "vob", "flv", "wmv",
        "asf", "ogv", "3gp", "gif", "y4m", "mjpeg",
    ];
    extension_is(path, KNOWN)
}

/// An image as one frame, `[1, 3, 1, H, W]` in [-1, 1].
///
/// # Errors
/// The file is missing or no image.
pub fn read_image(path: &Path, size: Option<Size>) -> Result<Tensor> {
    let (bytes, height, width) = image_bytes(&Location::file(path), size)?;
    let frame = Tensor::from_slice(&bytes).view([1, 1, height, width, 3]);
    Ok(to_float(&frame.permute([0, 4, 1, 2, 3])))
}

/// An image's bytes `[H, W, 3]`, turned as its EXIF data say; H and W.
pub(crate) fn image_bytes(location: &Location, size: Option<Size>) -> Result<(Vec<u8>, i64, i64)> {
    let no_image = |e: &dyn std::fmt::Display| {
        Error::unreadable(
            &location.path,
            format!("no image that can be read ({})", e.to_string().replace('\n', " ")),
        )
    };
    let bytes = location.read()?;
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| no_image(&e))?;
    let mut decoder = reader.into_decoder().map_err(|e| no_image(&e))?;
    let orientation = decoder.orientation().map_err(|e| no_image(&e))?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|e| no_image(&e))?;
    picture.apply_orientation(orientation);
    if let Some(Size { height, width, fit }) = size {
        let (Ok(w @ 1..), Ok(h @ 1..)) = (u32::try_from(width), u32::try_from(height)) else {
            return Err(Error::config("clip.size", format!("{height}x{width}"), "at least 1x1"));
        };
        let filter = image::imageops::FilterType::CatmullRom;
        picture = match fit {
            _ if (picture.width(), picture.height()) == (w, h) => picture,
            Fit::Cover => picture.resize_to_fill(w, h, filter),
            Fit::Stretch => picture.resize_exact(w, h, filter),
        };
    }
    let picture = picture.into_rgb8();
    let (width, height) = picture.dimensions();
    Ok((picture.into_raw(), height.into(), width.into()))
}

/// An image's rows and columns as shown, from its header.
pub(crate) fn image_size(location: &Location) -> Result<(i64, i64)> {
    use image::metadata::Orientation;
    let no_image =
        |e: image::ImageError| Error::unreadable(&location.path, format!("no image that can be read ({e})"));
    let reader = ImageReader::new(Cursor::new(location.read()?)).with_guessed_format();
    let reader = reader.map_err(|e| Error::unreadable(&location.path, e.to_string()))?;
    let mut decoder = reader.into_decoder().map_err(no_image)?;
    let (width, height) = decoder.dimensions();
    let turned = matches!(
        decoder.orientation().map_err(no_image)?,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    );
    let (height, width) = if turned { (width, height) } else { (height, width) };
    Ok((height.into(), width.into()))
}
