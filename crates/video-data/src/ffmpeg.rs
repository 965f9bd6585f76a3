//! The ffmpeg binary: finding it, asking it about a file, and reading its complaints.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::location::Location;
use crate::{Error, Result};

/// Where ffmpeg is: `VIREO_FFMPEG`, then PATH, then the cache that `bootstrap.sh` fills.
///
/// # Errors
/// It is nowhere.
pub fn ffmpeg_path() -> Result<PathBuf> {
    find(std::env::var_os("VIREO_FFMPEG"), std::env::var_os("PATH"), cached())
}

fn find(
    named: Option<std::ffi::OsString>,
    path: Option<std::ffi::OsString>,
    cached: Option<PathBuf>,
) -> Result<PathBuf> {
    let on_path = path.iter().flat_map(std::env::split_paths).map(|folder| folder.join("ffmpeg"));
    named
        .map(PathBuf::from)
        .into_iter()
        .chain(on_path)
        .chain(cached)
        .find(|path| path.is_file())
        .ok_or(Error::NoFfmpeg)
}

fn cached() -> Option<PathBuf> {
    let cache = match (std::env::var_os("VIREO_CACHE"), std::env::var_os("XDG_CACHE_HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(cache)) => PathBuf::from(cache).join("vireo"),
        (None, None) => PathBuf::from(std::env::var_os("HOME")?).join(".cache/vireo"),
    };
    Some(cache.join("bin/ffmpeg"))
}

/// A command that neither reads the terminal nor fetches anything over a network.
pub(crate) fn command() -> Result<Command> {
    let mut command = Command::new(ffmpeg_path()?);
    command.args(["-hide_banner", "-nostdin"]).stdin(Stdio::null());
    Ok(command)
}

/// The arguments that open a file for reading.
pub(crate) fn input(command: &mut Command, location: &Location) {
    command.args(["-protocol_whitelist", "file,subfile,pipe", "-i"]).arg(location.ffmpeg_input());
}

/// What ffmpeg says of a video.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoInfo {
    /// Columns of a decoded frame (after rotation).
    pub width: i64,
    /// Rows of a decoded frame (after rotation).
    pub height: i64,
    /// How much wider than high a pixel is shown; 1 for square ones.
    pub pixel_aspect: f64,
    /// Frames per second.
    pub frame_rate: f64,
    /// Seconds, where the container says so.
    pub duration: Option<f64>,
}

impl VideoInfo {
    /// Width over height, as shown.
    pub fn aspect(&self) -> f64 {
        self.width as f64 * self.pixel_aspect / self.height as f64
    }
}

/// Asks ffmpeg about a file. ffmpeg alone is needed, not ffprobe.
///
/// # Errors
/// The file is missing, empty or holds no video, ffmpeg is absent.
pub fn probe(path: &Path) -> Result<VideoInfo> {
    probe_at(&Location::file(path))
}

pub(crate) fn probe_at(location: &Location) -> Result<VideoInfo> {
    location.check()?;
    let mut command = command()?;
    input(&mut command, location);
    let text = run(&mut command, location)?;
    parse_info(&text).ok_or_else(|| {
        let problem = if text.lines().any(|line| line.trim().starts_with("Stream #")) {
            "it holds no video, but sound or text".to_string()
        } else {
            format!("ffmpeg finds no video in it ({}); is it cut short, or no video?", complaint(&text))
        };
        Error::unreadable(&location.path, problem)
    })
}

/// Seconds of a video whose container does not tell: all packets are read, none is decoded.
pub(crate) fn measure_duration(location: &Location) -> Result<f64> {
    let mut command = command()?;
    input(&mut command, location);
    command.args(["-map", "0:v:0", "-c", "copy", "-f", "null", "-progress", "pipe:2", "-"]);
    let text = run(&mut command, location)?;
    let mut times =
        text.lines().filter_map(|line| line.strip_prefix("out_time_us=")?.trim().parse::<f64>().ok());
    times.next_back().map(|microseconds| microseconds / 1e6).ok_or_else(|| {
        Error::unreadable(&location.path, format!("its length is not known ({})", complaint(&text)))
    })
}

/// What a command writes to stderr; its exit status says little, ffmpeg fails whenever no output is named.
fn run(command: &mut Command, location: &Location) -> Result<String> {
    let output = command
        .output()
        .map_err(|e| Error::unreadable(&location.path, format!("ffmpeg does not start: {e}")))?;
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The line of ffmpeg's stderr that says most: the first that a demuxer, decoder or encoder wrote, else the last.
pub(crate) fn complaint(stderr: &str) -> String {
    let says_nothing =
        ["At least one output", "Conversion failed", "Error opening input file", "Error opening output file"];
    let telling = |line: &&str| !line.is_empty() && !says_nothing.iter().any(|noise| line.starts_with(noise));
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(telling).collect();
    let tagged = lines.iter().find(|line| line.starts_with('[') && line.contains(" @ "));
    let Some(mut line) = tagged.or(lines.last()).copied() else {
        return "it says nothing".into();
    };
    // "[mov,mp4 @ 0x55d0] moov atom not found" without who says it.
    while let Some((_, rest)) =
        line.split_once("] ").filter(|(head, _)| head.starts_with('[') && head.contains(" @ "))
    {
        line = rest;
    }
    line.trim_end_matches('.').to_string()
}

fn parse_info(stderr: &str) -> Option<VideoInfo> {
    let stream = stderr.lines().find(|line| line.contains("Stream #") && line.contains("Video:"))?;
    let pair = |text: &str, between: char| {
        let (a, b) = text.split_once(between)?;
        Some((a.parse::<i64>().ok().filter(|&n| n > 0)?, b.parse::<i64>().ok().filter(|&n| n > 0)?))
    };
    let (mut width, mut height) = stream.split([',', ' ']).find_map(|word| pair(word, 'x'))?;
    let mut words = stream.split([',', ' ', '[', ']']).skip_while(|&word| word != "SAR");
    let mut pixel_aspect =
        words.nth(1).and_then(|word| pair(word, ':')).map_or(1.0, |(a, b)| a as f64 / b as f64);
    let before = |unit: &str| {
        let number = |part: &str| match part.strip_suffix('k') {
            Some(thousands) => thousands.parse::<f64>().ok().map(|n| n * 1000.0),
            None => part.parse::<f64>().ok(),
        };
        stream.split(',').find_map(|part| number(part.trim().strip_suffix(unit)?.trim()))
    };
    let frame_rate = before("fps").or_else(|| before("tbr")).filter(|&rate| rate > 0.0).unwrap_or(25.0);
    let duration = stderr.lines().find_map(|line| {
        let text = line.trim().strip_prefix("Duration: ")?.split(',').next()?;
        let mut seconds = 0.0;
        for part in text.split(':') {
            seconds = seconds * 60.0 + part.parse::<f64>().ok()?;
        }
        Some(seconds).filter(|&seconds| seconds > 0.0)
    });
    if stderr.lines().any(|line| line.contains("rotation of") && line.contains("90.00")) {
        std::mem::swap(&mut width, &mut height);
        pixel_aspect = 1.0 / pixel_aspect;
    }
    Some(VideoInfo { width, height, pixel_aspect, frame_rate, duration })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "  Duration: 00:01:02.50, start: 0.0, bitrate: 1 kb/s\n  Stream #0:0[0x1](und): Video: h264 (High) (avc1 / 0x31637661), yuv420p(tv, bt709), 340x256 [SAR 64:51 DAR 5:3], 498 kb/s, 29.97 fps, 29.97 tbr, 30k tbn (default)\n";

    #[test]
    fn the_stream_line_is_understood() {
        let info = parse_info(STREAM).unwrap();
        let pixel_aspect = 64.0 / 51.0;
        assert_eq!(
            info,
            VideoInfo { width: 340, height: 256, pixel_aspect, frame_rate: 29.97, duration: Some(62.5) }
        );
        assert!((info.aspect() - 5.0 / 3.0).abs() < 1e-9);
        let turned = parse_info(&format!("{STREAM} displaymatrix: rotation of -90.00 degrees")).unwrap();
        assert_eq!((turned.width, turned.height, turned.pixel_aspect), (256, 340, 51.0 / 64.0));
        let plain = parse_info("Duration: N/A, x\nStream #0:0: Video: rawvideo, rgb24, 8x6, 1k tbr").unwrap();
        assert_eq!((plain.frame_rate, plain.duration, plain.pixel_aspect), (1000.0, None, 1.0));
        assert_eq!(parse_info("Stream #0:0: Audio: aac"), None);
    }

    #[test]
    fn complaints_are_one_line_without_addresses() {
        let text = "[in#0 @ 0x1] [mov @ 0x2] moov atom not found\n[in#0 @ 0x1] Error opening input: Invalid data\nError opening input file x.\n";
        assert_eq!(complaint(text), "moov atom not found");
        assert_eq!(complaint("No space left on device\nConversion failed!\n"), "No space left on device");
        assert_eq!(complaint(""), "it says nothing");
    }

    #[test]
    fn an_absent_ffmpeg_is_said_so() {
        let nowhere = Some("/nonexistent/ffmpeg".into());
        let error = find(nowhere, Some("/nonexistent".into()), None).unwrap_err();
        assert!(matches!(error, Error::NoFfmpeg) && error.to_string().contains("bootstrap.sh"), "{error}");
    }
}
