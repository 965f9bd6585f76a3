//! Tar shards in the WebDataset layout: the members whose names agree up to the first dot are one sample.
//!
//! A sample holds a video (`key.mp4`) or its frames (`key.000.jpg`, `key.001.jpg`, …), and may hold `key.cls` (the class,
//! a number), `key.txt` (a caption) and `key.json` (`"class"` or `"label"`: a number; `"actions"`: one number per
//! transition between frames; `"caption"`: a text).
//! Members are found once, by walking over the headers, and then read where they lie.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::Failure;
use crate::catalogue::{Catalogue, Item, Labels, Media};
use crate::location::{Location, natural};
use crate::reader::{is_image, is_video};

/// Most bytes of a label; what is larger is none.
const LABEL_LIMIT: u64 = 1 << 20;

/// A sample while its members come in.
#[derive(Default)]
struct Sample {
    key: String,
    video: Option<Location>,
    frames: Vec<(String, Location)>,
    labels: Labels,
    problem: Option<String>,
}

/// Adds a shard's samples; what is wrong with it goes to the failures.
pub(crate) fn read(path: &Path, name: &str, catalogue: &mut Catalogue) {
    let before = catalogue.items.len() + catalogue.failures.len();
    if let Err(error) = walk(path, name, catalogue) {
        let reason = format!(
            "the shard is damaged or cut short ({}); fetch it again",
            error.to_string().replace('\n', " ")
        );
        catalogue.failures.push(Failure::new(path, reason));
    } else if catalogue.items.len() + catalogue.failures.len() == before {
        catalogue.failures.push(Failure::new(path, "it holds no video and no picture"));
    }
}

fn walk(path: &Path, name: &str, catalogue: &mut Catalogue) -> std::io::Result<()> {
    let mut archive = tar::Archive::new(BufReader::new(File::open(path)?));
    let mut sample = Sample::default();
    for entry in archive.entries_with_seek()? {
        let mut entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                finish(sample, path, name, catalogue);
                return Err(error);
            }
        };
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let member = entry.path()?.to_string_lossy().into_owned();
        let (folder, file) =
            member.rsplit_once('/').map_or(("", member.as_str()), |(folder, file)| (folder, file));
        let Some((stem, extension)) = file.split_once('.').filter(|(stem, _)| !stem.is_empty()) else {
            continue;
        };
        let key = if folder.is_empty() { stem.to_string() } else { format!("{folder}/{stem}") };
        if key != sample.key {
            finish(std::mem::take(&mut sample), path, name, catalogue);
            sample.key = key;
        }
        let location = Location::member(path, &member, entry.raw_file_position(), entry.size());
        if is_video(Path::new(&member)) {
            if sample.video.replace(location).is_some() {
                sample.problem = Some("two videos have this name up to the first dot".into());
            }
        } else if is_image(Path::new(&member)) && is_frame(extension) {
            sample.frames.push((extension.to_string(), location));
        } else if matches!(extension, "cls" | "json" | "txt") {
            let mut text = String::new();
            let read = entry.by_ref().take(LABEL_LIMIT).read_to_string(&mut text).map(|_| ());
            let labels = read.map_err(|e| e.to_string()).and_then(|()| sample.label(extension, &text));
            sample.problem = sample.problem.or(labels.err().map(|problem| format!("{member}: {problem}")));
        }
    }
    finish(sample, path, name, catalogue);
    Ok(())
}

/// Whether a picture is a frame, by what stands behind the key: `jpg` or `007.jpg`. Others (`mask.png`) are not.
fn is_frame(extension: &str) -> bool {
    extension.rsplit_once('.').is_none_or(|(number, _)| number.bytes().all(|c| c.is_ascii_digit()))
}

impl Sample {
    fn label(&mut self, extension: &str, text: &str) -> Result<(), String> {
        let labels = &mut self.labels;
        if extension == "txt" {
            labels.caption = Some(text.trim().to_string());
            return Ok(());
        }
        if extension == "cls" {
            let class =
                text.trim().parse().map_err(|_| format!("the class {:?} is no number", text.trim()))?;
            labels.class = Some(class);
            return Ok(());
        }
        let json: serde_json::Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        labels.class = labels.class.or(["class", "label"].iter().find_map(|key| json.get(key)?.as_i64()));
        if labels.caption.is_none() {
            labels.caption = json.get("caption").and_then(|text| text.as_str()).map(str::to_string);
        }
        if let Some(actions) = json.get("actions") {
            let numbers =
                actions.as_array().and_then(|all| all.iter().map(serde_json::Value::as_i64).collect());
            labels.actions = Some(numbers.ok_or("\"actions\" is no list of whole numbers")?);
        }
        Ok(())
    }
}

fn finish(mut sample: Sample, path: &Path, name: &str, catalogue: &mut Catalogue) {
    let at = path.join(&sample.key);
    if let Some(problem) = sample.problem {
        catalogue.failures.push(Failure::new(&at, problem));
        return;
    }
    sample.frames.sort_by(|(a, _), (b, _)| natural(a, b));
    let frames: Vec<Location> = sample.frames.into_iter().map(|(_, location)| location).collect();
    let media = match sample.video {
        Some(video) => Media::Video(video),
        None if !frames.is_empty() => Media::Frames(frames),
        // Labels alone, or nothing yet.
        None => return,
    };
    let name = format!("{name}/{}", sample.key);
    catalogue.items.push(Item { name, media, labels: sample.labels });
}
