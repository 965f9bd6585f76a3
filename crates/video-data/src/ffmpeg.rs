//! The ffmpeg binary: finding it, asking it about a file, and reading its complaints.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Error, Result};

/// Where ffmpeg is: `VIREO_FFMPEG`, then PATH, then the cache that `bootstrap.sh` fills.
///
/// # Errors
/// It is nowhere.
pub fn ffmpeg_path() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("VIREO_FFMPEG").map(PathBuf::from).filter(|path| path.is_file()) {
        return Ok(path);
    }
    let on_path = std::env::var_os("PATH").and_then(|paths| {
        std::env::split_paths(&paths).map(|folder| folder.join("ffmpeg")).find(|path| path.is_file())
    });
    on_path.or_else(|| cached().filter(|path| path.is_file())).ok_or(Error::NoFfmpeg)
}

fn cached() -> Option<PathBuf> {
    let cache = match (std::env::var_os("VIREO_CACHE"), std::env::var_os("XDG_CACHE_HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(cache)) => PathBuf::from(cache).join("vireo"),
        (None, None) => PathBuf::from(std::env::var_os("HOME")?).join(".cache/vireo"),
    };
    Some(cache.join("bin/ffmpeg"))
}

/// What ffmpeg says of a video.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoInfo {
    /// Columns, as shown (after rotation).
    pub width: i64,
    /// Rows, as shown (after rotation).
    pub height: i64,
    /// Frames per second.
    pub frame_rate: f64,
    /// Seconds, where the container says so.
    pub duration: Option<f64>,
}

/// Asks ffmpeg about a file. ffmpeg alone is needed, not ffprobe.
///
/// # Errors
/// The file is missing or holds no video, ffmpeg is absent.
pub fn probe(path: &Path) -> Result<VideoInfo> {
    if !path.is_file() {
        return Err(Error::Missing(path.into()));
    }
    let output = Command::new(ffmpeg_path()?)
        .args(["-hide_banner", "-nostdin", "-i"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Error::unreadable(path, format!("ffmpeg does not start: {e}")))?;
    let text = String::from_utf8_lossy(&output.stderr);
    parse_info(&text).ok_or_else(|| {
        Error::unreadable(
            path,
            format!("ffmpeg finds no video in it ({}); is it cut short, or no video?", complaint(&text)),
        )
    })
}

/// The last line of ffmpeg's stderr that says something of its own.
pub(crate) fn complaint(stderr: &str) -> String {
    let lines = stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut telling = lines
        .filter(|line| !line.starts_with("At least one output") && !line.starts_with("Conversion failed"));
    let line = telling.next_back().unwrap_or("it says nothing");
    // "[mov,mp4 @ 0x55d0] moov atom not found" without the address.
    line.split_once("] ").filter(|(head, _)| head.contains(" @ ")).map_or(line, |(_, rest)| rest).to_string()
}

fn parse_info(stderr: &str) -> Option<VideoInfo> {
    let stream = stderr.lines().find(|line| line.contains("Stream #") && line.contains("Video:"))?;
    let (mut width, mut height) = stream.split([',', ' ']).find_map(|word| {
        let (w, h) = word.split_once('x')?;
        Some((w.parse::<i64>().ok().filter(|&n| n > 0)?, h.parse::<i64>().ok().filter(|&n| n > 0)?))
    })?;
    let before = |unit: &str| {
        stream.split(',').map(str::trim).find_map(|part| part.strip_suffix(unit)?.trim().parse::<f64>().ok())
    };
    let frame_rate = before("fps").or_else(|| before("tbr")).filter(|&rate| rate > 0.0).unwrap_or(25.0);
    let duration = stderr.lines().find_map(|line| {
        let text = line.trim().strip_prefix("Duration: ")?.split(',').next()?;
        let mut seconds = 0.0;
        for part in text.split(':') {
            seconds = seconds * 60.0 + part.parse::<f64>().ok()?;
        }
        Some(seconds)
    });
    let turned = stderr
        .lines()
        .any(|line| line.contains("rotation of") && (line.contains("90.00") || line.contains("270.00")));
    if turned {
        std::mem::swap(&mut width, &mut height);
    }
    Some(VideoInfo { width, height, frame_rate, duration })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_line_is_understood() {
        let text = "  Duration: 00:01:02.50, start: 0.0, bitrate: 1 kb/s\n  Stream #0:0[0x1](und): Video: h264 (High) (avc1 / 0x31637661), yuv420p(tv, bt709), 340x256 [SAR 1:1 DAR 85:64], 498 kb/s, 29.97 fps, 29.97 tbr, 30k tbn (default)\n";
        let info = parse_info(text).unwrap();
        assert_eq!(info, VideoInfo { width: 340, height: 256, frame_rate: 29.97, duration: Some(62.5) });
        assert_eq!(parse_info("Stream #0:0: Audio: aac"), None);
        assert_eq!(complaint("[mov,mp4 @ 0x5581] moov atom not found\n"), "moov atom not found");
    }
}
