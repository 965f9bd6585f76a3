//! Writing PNG, GIF and MP4. Each file is made under a temporary name beside its target and renamed when it is whole.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use tch::{Kind, Tensor};

use crate::ffmpeg::{complaint, ffmpeg_path};
use crate::{Error, Result};

/// `[3, T, H, W]` in [-1, 1] as bytes `[T, H, W, 3]`, with T, H and W.
fn to_bytes(video: &Tensor) -> Result<(Vec<u8>, [usize; 3])> {
    let size = video.size();
    let [3, t, h, w] = size[..] else {
        return Err(Error::Shape { actual: size, expected: "[3, T, H, W]".into() });
    };
    if h < 1 || w < 1 {
        return Err(Error::Shape { actual: size, expected: "pictures of at least 1×1".into() });
    }
    let bytes = (video.detach().to_kind(Kind::Float).clamp(-1.0, 1.0) * 127.5 + 127.5)
        .round()
        .to_kind(Kind::Uint8)
        .to_device(tch::Device::Cpu)
        .permute([1, 2, 3, 0])
        .contiguous()
        .view(-1);
    let bytes = Vec::<u8>::try_from(bytes)
        .map_err(|e| Error::Shape { actual: video.size(), expected: e.to_string() })?;
    Ok((bytes, [t as usize, h as usize, w as usize]))
}

/// A temporary file beside the target, so that renaming it stays on one disk.
fn temporary(target: &Path, suffix: &str) -> Result<tempfile::TempPath> {
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".vireo-").suffix(suffix);
    // Readable as any file that one makes, not for its owner alone; the umask is applied to it.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
        .tempfile_in(folder)
        .map(tempfile::NamedTempFile::into_temp_path)
        .map_err(|e| Error::unwritable(target, e))
}

fn rename(temporary: tempfile::TempPath, target: &Path) -> Result<()> {
    temporary.persist(target).map_err(|e| Error::unwritable(target, e.error))
}

/// One picture `[3, H, W]` in [-1, 1].
///
/// # Errors
/// The folder cannot be written, the disk is full.
pub fn write_png(path: &Path, picture: &Tensor) -> Result<()> {
    if picture.dim() != 3 {
        return Err(Error::Shape { actual: picture.size(), expected: "[3, H, W]".into() });
    }
    let (bytes, [_, h, w]) = to_bytes(&picture.unsqueeze(1))?;
    let temporary = temporary(path, ".png")?;
    image::save_buffer_with_format(
        &temporary,
        &bytes,
        w as u32,
        h as u32,
        image::ColorType::Rgb8,
        image::ImageFormat::Png,
    )
    .map_err(|e| Error::unwritable(path, e))?;
    rename(temporary, path)
}

/// A video `[3, T, H, W]` in [-1, 1] as an endless GIF.
///
/// # Errors
/// The folder cannot be written, the disk is full.
pub fn write_gif(path: &Path, video: &Tensor, frame_rate: f64) -> Result<()> {
    let (bytes, [_, h, w]) = to_bytes(video)?;
    let temporary = temporary(path, ".gif")?;
    let failed = |e: &dyn std::fmt::Display| Error::unwritable(path, e.to_string());
    let (Ok(width), Ok(height)) = (u16::try_from(w), u16::try_from(h)) else {
        return Err(Error::Shape { actual: video.size(), expected: "at most 65535 pixels a side".into() });
    };
    let file = std::fs::File::create(&temporary).map_err(|e| failed(&e))?;
    let mut encoder =
        gif::Encoder::new(std::io::BufWriter::new(file), width, height, &[]).map_err(|e| failed(&e))?;
    encoder.set_repeat(gif::Repeat::Infinite).map_err(|e| failed(&e))?;
    for frame in bytes.chunks(h * w * 3) {
        let mut frame = gif::Frame::from_rgb_speed(width, height, frame, 5);
        // Hundredths of a second; browsers slow anything below 2 down to 10.
        frame.delay = ((100.0 / frame_rate.max(0.01)).round() as u16).max(2);
        encoder.write_frame(&frame).map_err(|e| failed(&e))?;
    }
    let mut inner = encoder.into_inner().map_err(|e| failed(&e))?;
    inner.flush().map_err(|e| failed(&e))?;
    drop(inner);
    rename(temporary, path)
}

/// An MP4 (H.264) being written, of any length. Dropped before it is finished, it leaves nothing behind.
#[derive(Debug)]
pub struct VideoWriter {
    target: PathBuf,
    /// `None` once it has its name.
    temporary: Option<tempfile::TempPath>,
    child: Child,
    stderr: Option<ChildStderr>,
    height: usize,
    width: usize,
}

impl VideoWriter {
    /// Begins a file. Odd sizes are padded to even ones, which H.264 wants, by repeating the border.
    ///
    /// # Errors
    /// ffmpeg is absent, the folder cannot be written, an empty size.
    pub fn create(path: &Path, width: i64, height: i64, frame_rate: f64) -> Result<Self> {
        if width < 1 || height < 1 || !(frame_rate > 0.0 && frame_rate.is_finite()) {
            return Err(Error::Shape {
                actual: vec![height, width],
                expected: format!("at least 1×1 pixels and a frame rate above 0 (it is {frame_rate})"),
            });
        }
        let temporary = temporary(path, ".mp4")?;
        let mut child = Command::new(ffmpeg_path()?)
            .args([
                "-hide_banner",
                "-nostdin",
                "-loglevel",
                "error",
                "-y",
                "-f",
                "rawvideo",
                "-pix_fmt",
                "rgb24",
            ])
            .args(["-s", &format!("{width}x{height}"), "-r", &frame_rate.to_string(), "-i", "pipe:0"])
            .args([
                "-vf",
                "pad=ceil(iw/2)*2:ceil(ih/2)*2",
                "-c:v",
                "libx264",
                "-crf",
                "12",
                "-pix_fmt",
                "yuv420p",
            ])
            .args(["-movflags", "+faststart"])
            .arg(&*temporary)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Error::unwritable(path, format!("ffmpeg does not start: {e}")))?;
        let stderr = child.stderr.take();
        Ok(Self {
            target: path.into(),
            temporary: Some(temporary),
            child,
            stderr,
            height: height as usize,
            width: width as usize,
        })
    }

    /// Appends frames `[3, t, H, W]` in [-1, 1].
    ///
    /// # Errors
    /// Another size than the file's; ffmpeg's complaint (a full disk, say).
    pub fn push(&mut self, frames: &Tensor) -> Result<()> {
        let (bytes, [_, h, w]) = to_bytes(frames)?;
        if (h, w) != (self.height, self.width) {
            return Err(Error::Shape {
                actual: frames.size(),
                expected: format!("[3, t, {}, {}], the file's size", self.height, self.width),
            });
        }
        let written = self.child.stdin.as_mut().map(|pipe| pipe.write_all(&bytes));
        match written {
            Some(Ok(())) => Ok(()),
            _ => {
                let complaint = self.ffmpeg_complaint();
                Err(Error::unwritable(&self.target, complaint))
            }
        }
    }

    /// Ends the file and puts it under its name.
    ///
    /// # Errors
    /// ffmpeg's complaint (a full disk, say); the target is untouched then.
    pub fn finish(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let complaint = self.ffmpeg_complaint();
        let status = self.child.wait().map_err(|e| Error::unwritable(&self.target, e))?;
        if !status.success() {
            return Err(Error::unwritable(&self.target, complaint));
        }
        match self.temporary.take() {
            Some(temporary) => rename(temporary, &self.target),
            None => Ok(()),
        }
    }

    /// All that ffmpeg said; waits for it to end.
    fn ffmpeg_complaint(&mut self) -> String {
        drop(self.child.stdin.take());
        let mut text = String::new();
        if let Some(mut stderr) = self.stderr.take() {
            let _ = stderr.read_to_string(&mut text);
        }
        complaint(&text)
    }
}

impl Drop for VideoWriter {
    fn drop(&mut self) {
        // Before the temporary file goes: ffmpeg would go on with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A video `[3, T, H, W]` in [-1, 1] as an MP4.
///
/// # Errors
/// As [`VideoWriter`]'s.
pub fn write_mp4(path: &Path, video: &Tensor, frame_rate: f64) -> Result<()> {
    let size = video.size();
    let [3, _, height, width] = size[..] else {
        return Err(Error::Shape { actual: size, expected: "[3, T, H, W]".into() });
    };
    let mut writer = VideoWriter::create(path, width, height, frame_rate)?;
    writer.push(video)?;
    writer.finish()
}
