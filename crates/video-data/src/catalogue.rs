//! What a data set holds: its videos, pictures and sequences of pictures, by name, before any is opened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::location::{Location, natural};
use crate::reader::{is_image, is_video};
use crate::{Error, Failure, Result, shards};

/// The bytes of one item.
#[derive(Clone, Debug)]
pub(crate) enum Media {
    /// A video.
    Video(Location),
    /// Pictures, one a frame.
    Frames(Vec<Location>),
}

/// One video, picture or sequence.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// Relative to the data set's folder, with `/` on every system: what splits are made by.
    pub name: String,
    pub media: Media,
    pub labels: Labels,
}

/// What is known of an item beside its pictures.
#[derive(Clone, Debug, Default)]
pub(crate) struct Labels {
    pub class: Option<i64>,
    /// One action per transition from a frame to the next.
    pub actions: Option<Vec<i64>>,
    pub caption: Option<String>,
}

impl Item {
    /// Where errors point to.
    pub fn path(&self) -> &Path {
        match &self.media {
            Media::Video(location) => &location.path,
            Media::Frames(frames) => frames.first().map_or(Path::new(""), |first| &first.path),
        }
    }
}

/// All items of a data set, in an order that does not depend on the file system.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    pub items: Vec<Item>,
    pub failures: Vec<Failure>,
    /// Pictures that are no sequence, where clips of several frames are wanted.
    pub stills: usize,
}

const EXPECTED: &str =
    "\"shapes\", \"maze\", or the path of a video, an image, a tar shard, or a folder that holds some";

/// Lists what a path names, for clips of so many frames.
pub(crate) fn list(source: &str, frames: i64) -> Result<Catalogue> {
    let mut catalogue = Catalogue::default();
    for path in expand(source) {
        if !path.exists() {
            let expected = format!("{EXPECTED}; {} does not exist", path.display());
            return Err(Error::config("source", source, &expected));
        }
        if path.is_dir() {
            folder(&path, frames, &mut catalogue);
        } else if is_shard(&path) {
            shards::read(&path, &name_of(&path, &path), &mut catalogue);
        } else {
            let location = Location::file(&path);
            let media = if is_image(&path) { Media::Frames(vec![location]) } else { Media::Video(location) };
            let name = name_of(&path, &path);
            catalogue.items.push(Item { name, media, labels: Labels::default() });
        }
    }
    if catalogue.items.is_empty() && catalogue.failures.is_empty() {
        let problem = match catalogue.stills {
            0 => format!("{EXPECTED}; it holds none"),
            stills => format!(
                "videos, or folders whose pictures are the frames of one video (at least {frames} of one size): the {stills} pictures there are none; clip.frames = 1 takes them as they are"
            ),
        };
        return Err(Error::config("source", source, &problem));
    }
    Ok(catalogue)
}

fn is_shard(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("tar"))
}

/// A path below a folder, with `/` between its parts.
fn name_of(path: &Path, root: &Path) -> String {
    let below = path.strip_prefix(root).ok().filter(|below| !below.as_os_str().is_empty());
    let below = below.unwrap_or_else(|| Path::new(path.file_name().unwrap_or(path.as_os_str())));
    below.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// `a-{08..11}.tar` as four paths; any other path as it is.
fn expand(source: &str) -> Vec<PathBuf> {
    let range = source.split_once('{').and_then(|(before, rest)| {
        let (range, after) = rest.split_once('}')?;
        let (from, to) = range.split_once("..")?;
        let width = from.len();
        let (from, to) = (from.parse::<u32>().ok()?, to.parse::<u32>().ok()?);
        // More shards than this is a slip of the keyboard.
        let count = to.checked_sub(from).filter(|&count| count < 1_000_000)?;
        Some((0..=count).map(|i| format!("{before}{:0width$}{after}", from + i).into()).collect())
    });
    range.unwrap_or_else(|| vec![source.into()])
}

fn folder(root: &Path, frames: i64, catalogue: &mut Catalogue) {
    let mut files: Vec<(String, PathBuf)> = Vec::new();
    for entry in walkdir::WalkDir::new(root).follow_links(true) {
        match entry {
            Ok(entry) if entry.file_type().is_file() => {
                files.push((name_of(entry.path(), root), entry.into_path()))
            }
            Ok(_) => {}
            Err(error) => {
                let path = error.path().unwrap_or(root).to_path_buf();
                catalogue.failures.push(Failure::new(&path, error.to_string().replace('\n', " ")));
            }
        }
    }
    files.sort_by(|(a, _), (b, _)| natural(a, b));
    let mut pictures: BTreeMap<String, Vec<Location>> = BTreeMap::new();
    let first = catalogue.items.len();
    for (name, path) in files {
        let location = Location::file(&path);
        if is_shard(&path) {
            shards::read(&path, &name, catalogue);
        } else if is_video(&path) {
            catalogue.items.push(Item { name, media: Media::Video(location), labels: Labels::default() });
        } else if is_image(&path) && frames == 1 {
            catalogue.items.push(Item {
                name,
                media: Media::Frames(vec![location]),
                labels: Labels::default(),
            });
        } else if is_image(&path) {
            let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
            pictures.entry(parent.to_string()).or_default().push(location);
        }
    }
    for (parent, locations) in pictures {
        if is_sequence(&locations, frames) {
            let name = if parent.is_empty() { name_of(root, root) } else { parent };
            catalogue.items.push(Item { name, media: Media::Frames(locations), labels: Labels::default() });
        } else {
            catalogue.stills += locations.len();
        }
    }
    catalogue.items[first..].sort_by(|a, b| natural(&a.name, &b.name));
    label_by_folder(&mut catalogue.items[first..]);
}

/// Whether pictures can be the frames of one video: enough of them, and the first, middle and last of one size.
fn is_sequence(pictures: &[Location], frames: i64) -> bool {
    let [first, .., last] = pictures else { return false };
    let size = |location: &Location| crate::reader::image_size(location).ok();
    let Some(wanted) = size(first) else { return false };
    let same = |location: &Location| size(location) == Some(wanted);
    pictures.len() as i64 >= frames && same(last) && same(&pictures[pictures.len() / 2])
}

/// Where every item lies in a folder below the root and has no class yet, the folders' names are the classes, in order.
fn label_by_folder(items: &mut [Item]) {
    let folder = |item: &Item| item.name.split_once('/').map(|(folder, _)| folder.to_string());
    let Some(mut classes) = items.iter().map(folder).collect::<Option<Vec<String>>>() else { return };
    if items.iter().any(|item| item.labels.class.is_some()) {
        return;
    }
    classes.sort_by(|a, b| natural(a, b));
    classes.dedup();
    for item in items {
        let name = folder(item);
        item.labels.class =
            classes.iter().position(|class| Some(class) == name.as_ref()).map(|class| class as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_shards_are_expanded() {
        let names = |source| expand(source).iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
        assert_eq!(names("x/a-{08..11}.tar"), ["x/a-08.tar", "x/a-09.tar", "x/a-10.tar", "x/a-11.tar"]);
        assert_eq!(names("a{b}.tar"), ["a{b}.tar"]);
        assert_eq!(names("a{9..1}.tar"), ["a{9..1}.tar"]);
    }
}
