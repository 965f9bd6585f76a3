//! Where the bytes of a video or an image lie: a file, or a member of a tar shard.

use std::cmp::Ordering;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A file, or a span of one. A member of a shard is read where it lies, nothing is unpacked.
#[derive(Clone, Debug)]
pub(crate) struct Location {
    file: PathBuf,
    /// First byte and the byte after the last.
    span: Option<(u64, u64)>,
    /// What errors call it: the path, with the member's name behind it.
    pub path: PathBuf,
}

impl Location {
    pub fn file(path: &Path) -> Self {
        Self { file: path.into(), span: None, path: path.into() }
    }

    pub fn member(shard: &Path, name: &str, start: u64, size: u64) -> Self {
        Self { file: shard.into(), span: Some((start, start + size)), path: shard.join(name) }
    }

    /// What ffmpeg's `-i` takes. The protocol is always named: a file may be called `concat:x` or `-y`.
    pub fn ffmpeg_input(&self) -> OsString {
        let mut input = match self.span {
            Some((start, end)) => OsString::from(format!("subfile,,start,{start},end,{end},,:file:")),
            None => OsString::from("file:"),
        };
        input.push(&self.file);
        input
    }

    /// All bytes.
    pub fn read(&self) -> Result<Vec<u8>> {
        self.check()?;
        let failed = |e: std::io::Error| Error::unreadable(&self.path, e.to_string());
        let mut file = File::open(&self.file).map_err(failed)?;
        let mut bytes = Vec::new();
        match self.span {
            None => file.read_to_end(&mut bytes),
            Some((start, end)) => {
                file.seek(SeekFrom::Start(start)).map_err(failed)?;
                file.take(end - start).read_to_end(&mut bytes)
            }
        }
        .map_err(failed)?;
        Ok(bytes)
    }

    /// Refuses what is not there, folders, and files without a byte.
    pub fn check(&self) -> Result<()> {
        let data = std::fs::metadata(&self.file).map_err(|_| Error::Missing(self.file.clone()))?;
        if data.is_dir() {
            return Err(Error::unreadable(&self.path, "it is a folder; a file is expected here"));
        }
        let (end, size) = self.span.map_or((data.len(), data.len()), |(start, end)| (end, end - start));
        if size == 0 {
            return Err(Error::unreadable(&self.path, "the file is empty"));
        }
        if end > data.len() {
            return Err(Error::unreadable(
                &self.path,
                "the shard is cut short within this member; fetch it again",
            ));
        }
        Ok(())
    }
}

/// Orders names as people do: `frame2` before `frame10`.
pub(crate) fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a.as_bytes(), b.as_bytes());
    loop {
        match (digits(left), digits(right)) {
            (0, _) | (_, 0) => match (left.first(), right.first()) {
                (Some(x), Some(y)) if x == y => (left, right) = (&left[1..], &right[1..]),
                // Equal as numbers, such as 01 and 1: any fixed order will do.
                (None, None) => return a.cmp(b),
                (x, y) => return x.cmp(&y),
            },
            (m, n) => {
                let number = |text: &[u8]| {
                    let zeros = text.iter().take_while(|&&c| c == b'0').count();
                    text[zeros..].to_vec()
                };
                let (x, y) = (number(&left[..m]), number(&right[..n]));
                match x.len().cmp(&y.len()).then_with(|| x.cmp(&y)) {
                    Ordering::Equal => (left, right) = (&left[m..], &right[n..]),
                    unequal => return unequal,
                }
            }
        }
    }
}

/// How many digits a text begins with.
fn digits(text: &[u8]) -> usize {
    text.iter().take_while(|c| c.is_ascii_digit()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ordered_as_people_do() {
        let mut names = ["b/2.png", "b/10.png", "b/1.png", "a/f12x", "a/f2x", "b/01.png", "b/", "c"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["a/f2x", "a/f12x", "b/", "b/01.png", "b/1.png", "b/2.png", "b/10.png", "c"]);
    }
}
