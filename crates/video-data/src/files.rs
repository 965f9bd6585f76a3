//! Clips cut from files: kept decoded in memory where they fit, decoded clip by clip where not.

use std::ops::Range;
use std::path::PathBuf;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::catalogue::{Catalogue, Item, Labels, Media, list};
use crate::ffmpeg::{VideoInfo, measure_duration, probe_at};
use crate::frames::{Window, planar};
use crate::location::Location;
use crate::reader::{image_bytes, image_size};
use crate::{
    Clip, ClipSource, DataConfig, DecodeOptions, Error, Failure, Fit, HeldOutBy, Result, Size, Split,
    VideoReader,
};

/// So many files and more are held out by name unless the config says otherwise.
const MANY_FILES: usize = 20;

/// The most frames of a file; a container that promises more is not believed.
const MOST_FRAMES: f64 = (1 << 26) as f64;

/// What is known of an item's bytes once it was looked into.
enum Opened {
    /// A video, and the frame rate at which it is read.
    Video(Location, VideoInfo, f64),
    /// Pictures, one a frame.
    Frames(Vec<Location>),
}

/// One item that can be read, as far as it belongs to the split.
struct Entry {
    name: String,
    /// Where errors point to.
    path: PathBuf,
    labels: Labels,
    media: Opened,
    /// Which of the clips' sizes it is read at.
    bucket: usize,
    /// Its frames, as far as is known before decoding.
    frames: i64,
    /// The frames that belong to the split.
    part: Range<i64>,
    /// The part's frames `[T, H, W, 3]`, where kept in memory.
    decoded: Option<Vec<u8>>,
}

pub(crate) struct Files {
    entries: Vec<Entry>,
    /// Entry and first frame of each clip, bucket by bucket; clips do not overlap.
    clips: Vec<(usize, i64)>,
    buckets: Vec<Range<u64>>,
    sizes: Vec<(i64, i64)>,
    failures: Vec<Failure>,
    config: DataConfig,
    split: Split,
}

impl Files {
    pub fn open(config: &DataConfig, split: Split) -> Result<Self> {
        let Catalogue { items, mut failures, stills } = list(&config.source, config.clip.frames)?;
        if stills > 0 {
            tracing::warn!(
                "{}: {stills} pictures are left out: clip.frames = {}",
                config.source,
                config.clip.frames
            );
        }
        let whole_files = config.held_out_by.unwrap_or(match items.len() {
            MANY_FILES.. => HeldOutBy::Name,
            _ => HeldOutBy::Time,
        }) == HeldOutBy::Name;
        let items = part_of(items, whole_files, config, split);
        let probed = items.into_par_iter().map(|item| probe(item, config)).collect();
        let mut entries = keep_or_note(probed, &mut failures)?;
        let sizes = config.clip.sizes();
        let frame_bytes = |entry: &Entry| (sizes[entry.bucket].0 * sizes[entry.bucket].1 * 3) as u64;
        // Of both splits, so that both are read in the same way.
        let total: u64 = entries.iter().map(|entry| frame_bytes(entry) * entry.frames as u64).sum();
        for entry in &mut entries {
            entry.part = part(entry, whole_files, config, split);
        }
        if total <= config.memory.saturating_mul(1 << 20) {
            let decoded = entries.into_par_iter().map(|entry| decode(entry, &sizes)).collect();
            entries = keep_or_note(decoded, &mut failures)?;
        }
        if entries.is_empty() && !failures.is_empty() {
            return Err(Error::AllUnreadable { what: format!("files of {}", config.source), failures });
        }
        let (clips, buckets) = cut(&entries, sizes.len(), config.clip.frames);
        if clips.is_empty() {
            return Err(nothing_to_cut(&entries, config, split));
        }
        for entry in entries.iter().filter(|entry| entry.frames < config.clip.frames) {
            let reason = format!("too short: {} frames, a clip has {}", entry.frames, config.clip.frames);
            failures.push(Failure::new(&entry.path, reason));
        }
        for failure in &failures {
            tracing::warn!("left out: {failure}");
        }
        Ok(Self { entries, clips, buckets, sizes, failures, config: config.clone(), split })
    }

    fn cut_clip(&self, entry: &Entry, start: i64, window: Window, flip: bool) -> Result<Clip> {
        let frames = self.config.clip.frames;
        let (height, width) = self.sizes[entry.bucket];
        let frame = (height * width * 3) as usize;
        let read;
        let (start, bytes) = match &entry.decoded {
            Some(decoded) => {
                let first = (start - entry.part.start) as usize;
                (start, &decoded[first * frame..(first + frames as usize) * frame])
            }
            None => {
                read = read_clip(entry, start, frames, Size { height, width, fit: Fit::Cover })?;
                (read.0, read.1.as_slice())
            }
        };
        let actions = match &entry.labels.actions {
            None => None,
            Some(all) => Some(tch::Tensor::from_slice(
                all.get(start as usize..(start + frames - 1) as usize).ok_or_else(|| {
                    let problem = format!("{} actions do not reach the clip's end", all.len());
                    Error::unreadable(&entry.path, problem)
                })?,
            )),
        };
        Ok(Clip {
            video: planar(bytes, (height, width), window, flip),
            name: format!("{} from frame {start}", entry.name),
            class: entry.labels.class,
            actions,
            caption: entry.labels.caption.clone(),
        })
    }
}

impl ClipSource for Files {
    fn len(&self) -> Option<u64> {
        Some(self.clips.len() as u64)
    }

    fn clip(&self, index: u64) -> Result<Clip> {
        let (entry, start) = self.clips[(index % self.clips.len() as u64) as usize];
        let entry = &self.entries[entry];
        self.cut_clip(entry, start, Window::whole(self.sizes[entry.bucket]), false)
    }

    fn varied(&self, index: u64, seed: u64) -> Result<Clip> {
        if self.split == Split::HeldOut {
            return self.clip(index);
        }
        let (entry, _) = self.clips[(index % self.clips.len() as u64) as usize];
        let entry = &self.entries[entry];
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let start = rng.random_range(entry.part.start..=entry.part.end - self.config.clip.frames);
        let flip = self.config.flip && rng.random_bool(0.5);
        let window = Window::draw(self.sizes[entry.bucket], self.config.train_crop, &mut rng);
        self.cut_clip(entry, start, window, flip)
    }

    fn buckets(&self) -> Vec<Range<u64>> {
        self.buckets.clone()
    }

    fn failures(&self) -> &[Failure] {
        &self.failures
    }
}

/// Keeps what could be read; an ffmpeg that is not there is everybody's problem.
fn keep_or_note(results: Vec<Result<Entry>>, failures: &mut Vec<Failure>) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for result in results {
        match result {
            Ok(entry) => entries.push(entry),
            Err(error) if error.is_of_one_file() => failures.push(Failure::of(&error)),
            Err(error) => return Err(error),
        }
    }
    Ok(entries)
}

/// The items that have a part in the split: of those that are held out as wholes, only the split's.
fn part_of(items: Vec<Item>, whole_files: bool, config: &DataConfig, split: Split) -> Vec<Item> {
    let whole =
        |item: &Item| whole_files || matches!(&item.media, Media::Frames(frames) if frames.len() == 1);
    let mut hashes: Vec<u64> = items.iter().filter(|item| whole(item)).map(|item| hash(&item.name)).collect();
    hashes.sort_unstable();
    // A share of the hashes' range: a file stays on its side when others come or go. Neither side is left empty.
    let mut border = (config.held_out * u64::MAX as f64) as u64;
    if let [first, .., last] = hashes[..] {
        border = border.max(first).min(last.saturating_sub(1));
    }
    let held_out = |item: &Item| hashes.len() > 1 && hash(&item.name) <= border;
    items.into_iter().filter(|item| !whole(item) || held_out(item) == (split == Split::HeldOut)).collect()
}

/// FNV-1a and a finaliser: the same on every machine, in every version.
fn hash(name: &str) -> u64 {
    let fnv = name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    video_core::seeds::derive(fnv, video_core::seeds::Stream::Data, 0)
}

/// The frames of an entry that belong to the split.
fn part(entry: &Entry, whole_files: bool, config: &DataConfig, split: Split) -> Range<i64> {
    let (frames, length) = (entry.frames, config.clip.frames);
    if whole_files || frames == 1 {
        return 0..frames;
    }
    // At least one clip is held out of whatever holds two.
    let share = (frames as f64 * (1.0 - config.held_out)).floor() as i64;
    let border = if frames >= 2 * length { share.clamp(length, frames - length) } else { frames };
    match split {
        Split::Train => 0..border,
        Split::HeldOut => border..frames,
    }
}

/// Size, rate and length of an item.
fn probe(item: Item, config: &DataConfig) -> Result<Entry> {
    let sizes = config.clip.sizes();
    let path = item.path().to_path_buf();
    let (media, frames, aspect) = match item.media {
        Media::Video(location) => {
            let mut info = probe_at(&location)?;
            let seconds = match info.duration {
                Some(seconds) => seconds,
                None => measure_duration(&location)?,
            };
            info.duration = Some(seconds);
            let frame_rate = config.clip.frame_rate.unwrap_or(info.frame_rate);
            if item.labels.actions.is_some() && frame_rate != info.frame_rate {
                let expected = format!(
                    "none, as {} has an action for each of its own frames ({} a second)",
                    path.display(),
                    info.frame_rate
                );
                return Err(Error::config("clip.frame_rate", frame_rate, &expected));
            }
            // Containers round durations: a little is forgiven.
            let frames = (seconds * frame_rate + 0.05).floor().max(1.0);
            if frames > MOST_FRAMES {
                return Err(Error::unreadable(&path, format!("a length of {seconds} s is not believed")));
            }
            let aspect = info.aspect();
            (Opened::Video(location, info, frame_rate), frames as i64, aspect)
        }
        Media::Frames(locations) => {
            for location in &locations {
                location.check()?;
            }
            let aspect = match locations.first() {
                Some(first) if sizes.len() > 1 => {
                    let (height, width) = image_size(first)?;
                    width as f64 / height as f64
                }
                _ => 1.0,
            };
            let frames = locations.len() as i64;
            (Opened::Frames(locations), frames, aspect)
        }
    };
    let distance = |&(height, width): &(i64, i64)| (aspect * height as f64 / width as f64).ln().abs();
    let bucket =
        (0..sizes.len()).min_by(|&a, &b| distance(&sizes[a]).total_cmp(&distance(&sizes[b]))).unwrap_or(0);
    let Item { name, labels, .. } = item;
    Ok(Entry { name, path, labels, media, bucket, frames, part: 0..0, decoded: None })
}

/// Decodes an entry's part into memory.
fn decode(mut entry: Entry, sizes: &[(i64, i64)]) -> Result<Entry> {
    let (height, width) = sizes[entry.bucket];
    let size = Size { height, width, fit: Fit::Cover };
    let (location, info, frame_rate) = match &entry.media {
        Opened::Video(location, info, frame_rate) => (location, info, *frame_rate),
        Opened::Frames(locations) => {
            entry.decoded = Some(read_pictures(locations, &entry.part, size)?);
            return Ok(entry);
        }
    };
    let options = DecodeOptions {
        frame_rate: Some(frame_rate).filter(|&rate| rate != info.frame_rate),
        size: Some(size),
        // A container may promise too little; what it holds beyond its promise is left.
        max_frames: Some(entry.frames as u64 + 8),
        ..DecodeOptions::default()
    };
    let mut reader = VideoReader::open_at(location, info, &options, None)?;
    let mut bytes = Vec::new();
    loop {
        let chunk = reader.next_bytes(64)?;
        if chunk.is_empty() {
            break;
        }
        bytes.extend(chunk);
    }
    let frame = (height * width * 3) as usize;
    let frames = (bytes.len() / frame) as i64;
    if frames == 0 {
        return Err(Error::unreadable(&entry.path, "it holds no frame"));
    }
    // The border between the splits stays where the container's length put it; the end is where the frames end.
    let end = if entry.part.end == entry.frames { frames } else { entry.part.end.min(frames) };
    entry.part.end = end.max(entry.part.start);
    entry.frames = frames;
    bytes.truncate(end as usize * frame);
    bytes.drain(..(entry.part.start as usize * frame).min(bytes.len()));
    bytes.shrink_to_fit();
    entry.decoded = Some(bytes);
    Ok(entry)
}

/// Some pictures of a sequence, one after the other.
fn read_pictures(locations: &[Location], range: &Range<i64>, size: Size) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for location in &locations[range.start as usize..range.end as usize] {
        bytes.extend(image_bytes(location, Some(size))?.0);
    }
    Ok(bytes)
}

/// One clip straight from its file, and the frame that it begins at.
fn read_clip(entry: &Entry, start: i64, frames: i64, size: Size) -> Result<(i64, Vec<u8>)> {
    let (location, info, frame_rate) = match &entry.media {
        Opened::Video(location, info, frame_rate) => (location, info, *frame_rate),
        Opened::Frames(locations) => {
            return Ok((start, read_pictures(locations, &(start..start + frames), size)?));
        }
    };
    let wanted = (frames * size.height * size.width * 3) as usize;
    let read = |start: i64| -> Result<Vec<u8>> {
        let options = DecodeOptions {
            // Half a frame early, so that rounding cannot lose the first one.
            start_seconds: ((start as f64 - 0.5) / frame_rate).max(0.0),
            frame_rate: Some(frame_rate).filter(|&rate| rate != info.frame_rate),
            max_frames: Some(frames as u64),
            size: Some(size),
        };
        VideoReader::open_at(location, info, &options, Some(1))?.next_bytes(frames)
    };
    let bytes = read(start)?;
    if bytes.len() == wanted {
        return Ok((start, bytes));
    }
    // The container promised more than there is (its sound may be longer): the last clip that there is, then.
    let end = start + bytes.len() as i64 / (wanted as i64 / frames);
    let earlier = (end - frames).max(entry.part.start);
    let bytes = if earlier < start { read(earlier)? } else { bytes };
    if bytes.len() == wanted {
        return Ok((earlier, bytes));
    }
    let problem = format!("it ends after {end} frames, {} were promised", entry.frames);
    Err(Error::unreadable(&entry.path, problem))
}

/// All clips that do not overlap, bucket by bucket.
fn cut(entries: &[Entry], buckets: usize, length: i64) -> (Vec<(usize, i64)>, Vec<Range<u64>>) {
    let (mut clips, mut ranges) = (Vec::new(), Vec::new());
    for bucket in 0..buckets {
        let first = clips.len() as u64;
        for (index, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.bucket == bucket) {
            let starts = (entry.part.start..=entry.part.end - length).step_by(length as usize);
            clips.extend(starts.map(|start| (index, start)));
        }
        ranges.push(first..clips.len() as u64);
    }
    ranges.retain(|range| !range.is_empty());
    (clips, ranges)
}

fn nothing_to_cut(entries: &[Entry], config: &DataConfig, split: Split) -> Error {
    let needed = config.clip.frames;
    let longest = entries.iter().map(|entry| entry.frames).max();
    if split == Split::HeldOut && longest.is_none_or(|longest| longest >= needed) {
        let expected = format!(
            "data of which something can be held out: a video of at least {} frames, or two files with held_out_by = \"name\"",
            2 * needed
        );
        return Error::config("held_out", config.held_out, &expected);
    }
    let longest = longest.unwrap_or(0);
    let expected = format!("at most {longest}, the frames of the longest file; or a higher clip.frame_rate");
    Error::config("clip.frames", needed, &expected)
}
