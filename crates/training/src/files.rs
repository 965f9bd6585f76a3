//! Files that are there whole or not at all: written beside their place, synced, renamed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Maps an I/O error of writing `path`.
pub(crate) fn cannot_write(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| Error::Write { path: path.into(), source }
}

/// Makes a folder and those above it.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(cannot_write(path))
}

/// Puts a file in its place: `fill` writes a temporary one beside it, which is synced and renamed over `path`. On any
/// error the temporary file is removed and `path` is as it was.
pub(crate) fn write_whole(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = beside(path);
    let written = fill(&temporary)
        .and_then(|()| sync(&temporary))
        .and_then(|()| fs::rename(&temporary, path).map_err(cannot_write(path)))
        .and_then(|()| path.parent().map_or(Ok(()), sync_folder));
    if written.is_err() {
        // It may not even exist; the first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Puts a folder in its place, as [`write_whole`] a file. `fill` syncs the files that it writes. What was at `path`
/// is replaced.
pub(crate) fn write_whole_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = beside(path);
    let written = fs::create_dir(&temporary)
        .map_err(cannot_write(&temporary))
        .and_then(|()| fill(&temporary))
        .and_then(|()| sync_folder(&temporary))
        .and_then(|()| match fs::remove_dir_all(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(cannot_write(path)(error)),
            _ => fs::rename(&temporary, path).map_err(cannot_write(path)),
        })
        .and_then(|()| path.parent().map_or(Ok(()), sync_folder));
    if written.is_err() {
        let _ = fs::remove_dir_all(&temporary);
    }
    written
}

/// Waits until a file is on the disk.
pub(crate) fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(cannot_write(path))
}

/// Waits until a folder's list of names is on the disk. Only Unix can open folders; elsewhere the system does it.
fn sync_folder(path: &Path) -> Result<()> {
    if cfg!(unix) && !path.as_os_str().is_empty() {
        sync(path)?;
    }
    Ok(())
}

/// Whether a name is one that a killed process may have left.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.starts_with(".tmp-")
}

/// A name on the same file system that no reader takes for a finished file.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".tmp-{}-{name}", std::process::id()))
}
