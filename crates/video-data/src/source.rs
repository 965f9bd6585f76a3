//! Sources of clips: by number, so that the n-th clip is the same whoever asks, and whenever.

use std::path::{Path, PathBuf};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Tensor;
use video_core::seeds::{self, Stream};

use crate::reader::{image_bytes, to_float};
use crate::worlds::shapes::Scene;
use crate::{DataConfig, DecodeOptions, Error, Fit, Result, Size, VideoReader, is_image, is_video};

/// Which part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What a model is trained on.
    Train,
    /// What it never saw.
    HeldOut,
}

/// One clip.
#[derive(Debug)]
pub struct Clip {
    /// uint8 `[3, T, H, W]`.
    pub video: Tensor,
    /// Where it comes from.
    pub name: String,
    /// Its class, where the data set has classes.
    pub class: Option<i64>,
    /// What was done between one frame and the next, int64 `[T - 1]`, where the data set has actions.
    pub actions: Option<Tensor>,
}

impl Clip {
    /// The video as floats in [-1, 1].
    pub fn to_float(&self) -> Tensor {
        to_float(&self.video)
    }
}

/// Clips by number. None is empty.
#[expect(clippy::len_without_is_empty, reason = "opening refuses empty sources")]
pub trait ClipSource: Send + Sync {
    /// How many different clips there are; `None` where every number is another clip.
    fn len(&self) -> Option<u64>;

    /// The clip of a number.
    ///
    /// # Errors
    /// Its file has become unreadable.
    fn clip(&self, number: u64) -> Result<Clip>;

    /// Files that could not be read and were left out.
    fn skipped(&self) -> usize {
        0
    }
}

/// Opens what a config names.
///
/// # Errors
/// A config value that means nothing, a path that does not exist, files that all are unreadable.
pub fn open(config: &DataConfig, split: Split, seed: u64) -> Result<Box<dyn ClipSource>> {
    config.validate()?;
    if config.source == "shapes" {
        return Ok(Box::new(Shapes { config: config.clone(), split, seed }));
    }
    Ok(Box::new(Files::open(config, split, seed)?))
}

/// The world of moving shapes.
struct Shapes {
    config: DataConfig,
    split: Split,
    seed: u64,
}

impl ClipSource for Shapes {
    fn len(&self) -> Option<u64> {
        None
    }

    fn clip(&self, number: u64) -> Result<Clip> {
        let stream = match self.split {
            Split::Train => Stream::Data,
            Split::HeldOut => Stream::Eval,
        };
        let scene = Scene::new(seeds::derive(self.seed, stream, 0), number);
        let (height, width) = self.config.clip.size.height_width();
        let frames = self.config.clip.frames;
        let bytes: Vec<u8> =
            (0..frames as usize).flat_map(|t| scene.render(t, height as usize, width as usize)).collect();
        Ok(Clip {
            video: channels_first(&bytes, frames, height, width),
            name: format!("shapes {number}"),
            class: None,
            actions: None,
        })
    }
}

/// `[T, H, W, 3]` bytes as a tensor `[3, T, H, W]`.
fn channels_first(bytes: &[u8], frames: i64, height: i64, width: i64) -> Tensor {
    Tensor::from_slice(bytes).view([frames, height, width, 3]).permute([3, 0, 1, 2]).contiguous()
}

/// A file's decoded frames at the clips' size.
struct Decoded {
    name: String,
    bytes: Vec<u8>,
    frames: i64,
}

/// Videos and images, decoded once into memory at the clips' size.
struct Files {
    decoded: Vec<Decoded>,
    skipped: usize,
    /// The first frame of each possible clip, as (file, frame).
    starts: Vec<(usize, i64)>,
    config: DataConfig,
    split: Split,
    seed: u64,
}

/// Most bytes of decoded frames held in memory.
const MEMORY_LIMIT: usize = 4 << 30;

impl Files {
    fn open(config: &DataConfig, split: Split, seed: u64) -> Result<Self> {
        let root = PathBuf::from(&config.source);
        let files = media_files(&root)?;
        if files.is_empty() {
            return Err(Error::config(
                "source",
                &config.source,
                "\"shapes\", or the path of a video, an image, or a folder that holds some",
            ));
        }
        let mut decoded: Vec<Decoded> = Vec::new();
        let mut failures: Vec<Error> = Vec::new();
        let mut memory = 0;
        for file in &files {
            match decode(file, config) {
                Ok(one) => {
                    memory += one.bytes.len();
                    decoded.push(one);
                }
                Err(error @ Error::NoFfmpeg) => return Err(error),
                Err(error) => failures.push(error),
            }
            if memory > MEMORY_LIMIT {
                return Err(Error::config(
                    "source",
                    &config.source,
                    "videos that fit into 4 GB once decoded at the clips' size: name fewer, or lower clip.size or clip.frame_rate",
                ));
            }
        }
        if let (true, Some(first)) = (decoded.is_empty(), failures.first()) {
            return Err(Error::AllUnreadable {
                count: files.len(),
                source_name: config.source.clone(),
                first: first.to_string(),
            });
        }
        let starts = starts(&decoded, config, split);
        if starts.is_empty() {
            let longest = decoded.iter().map(|one| one.frames).max().unwrap_or(0);
            return Err(Error::config(
                "clip.frames",
                config.clip.frames,
                &format!(
                    "clips that fit into both the training part and the held-out part ({} of the frames); the longest file has {longest} frames",
                    config.held_out
                ),
            ));
        }
        Ok(Self { decoded, skipped: failures.len(), starts, config: config.clone(), split, seed })
    }
}

/// The first frames of all clips of a split: a video's last frames are held out; of single pictures, every n-th.
fn starts(decoded: &[Decoded], config: &DataConfig, split: Split) -> Vec<(usize, i64)> {
    let length = config.clip.frames;
    let every = (1.0 / config.held_out).round().max(2.0) as usize;
    let (mut starts, mut pictures) = (Vec::new(), 0);
    for (file, one) in decoded.iter().enumerate() {
        if one.frames == 1 && length == 1 {
            let held_out = pictures % every == 0;
            pictures += 1;
            if held_out == (split == Split::HeldOut) {
                starts.push((file, 0));
            }
            continue;
        }
        let border = (one.frames as f64 * (1.0 - config.held_out)).floor() as i64;
        match split {
            Split::Train => starts.extend((0..=border - length).map(|start| (file, start))),
            // Held-out clips do not overlap: each frame counts once.
            Split::HeldOut => {
                starts.extend(
                    (border..=one.frames - length).step_by(length as usize).map(|start| (file, start)),
                );
            }
        }
    }
    starts
}

fn media_files(root: &Path) -> Result<Vec<PathBuf>> {
    if !root.exists() {
        return Err(Error::config(
            "source",
            root.display(),
            "\"shapes\", or the path of a video, an image, or a folder that holds some; there is no such file",
        ));
    }
    if root.is_file() {
        return Ok(vec![root.into()]);
    }
    let mut files: Vec<PathBuf> = walkdir::WalkDir::new(root)
        .follow_links(true)
        .into_iter()
        .filter_map(|entry| Some(entry.ok()?.into_path()))
        .filter(|path| path.is_file() && (is_image(path) || is_video(path)))
        .collect();
    files.sort();
    Ok(files)
}

fn decode(path: &Path, config: &DataConfig) -> Result<Decoded> {
    let (height, width) = config.clip.size.height_width();
    let size = Some(Size { height, width, fit: Fit::Cover });
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let frame = (height * width * 3) as usize;
    if is_image(path) {
        let (bytes, ..) = image_bytes(path, size)?;
        return Ok(Decoded { name, bytes, frames: 1 });
    }
    let options = DecodeOptions { frame_rate: config.clip.frame_rate, size, ..DecodeOptions::default() };
    let mut reader = VideoReader::open(path, &options)?;
    let mut bytes = Vec::new();
    loop {
        let chunk = reader.next_bytes(64)?;
        if chunk.is_empty() {
            break;
        }
        bytes.extend(chunk);
    }
    let frames = (bytes.len() / frame) as i64;
    if frames == 0 {
        return Err(Error::unreadable(path, "it holds no frame"));
    }
    Ok(Decoded { name, bytes, frames })
}

impl ClipSource for Files {
    fn len(&self) -> Option<u64> {
        Some(self.starts.len() as u64)
    }

    fn clip(&self, number: u64) -> Result<Clip> {
        // Training draws starts at random; evaluation walks through them.
        let mut rng = ChaCha8Rng::seed_from_u64(seeds::derive(self.seed, Stream::Data, number));
        let (index, flip) = match self.split {
            Split::Train => {
                (rng.random_range(0..self.starts.len()), self.config.flip && rng.random_bool(0.5))
            }
            Split::HeldOut => ((number % self.starts.len() as u64) as usize, false),
        };
        let (file, start) = self.starts[index];
        let one = &self.decoded[file];
        let (height, width) = self.config.clip.size.height_width();
        let frames = self.config.clip.frames;
        let frame = (height * width * 3) as usize;
        let bytes = &one.bytes[start as usize * frame..(start + frames) as usize * frame];
        let mut video = channels_first(bytes, frames, height, width);
        if flip {
            video = video.flip([3]);
        }
        Ok(Clip { video, name: format!("{} from frame {start}", one.name), class: None, actions: None })
    }

    fn skipped(&self) -> usize {
        self.skipped
    }
}
