//! Writing files whole or not at all.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

/// Writes a file under a temporary name beside its target, syncs it, and renames it.
///
/// # Errors
/// The folder cannot be written, or the disk is full; the target is untouched then.
pub fn write_whole(target: &Path, bytes: &[u8]) -> Result<()> {
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let context = || format!("cannot write {}", target.display());
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(context)?;
    file.write_all(bytes).with_context(context)?;
    file.as_file().sync_all().with_context(context)?;
    file.persist(target).map_err(|e| e.error).with_context(context)?;
    Ok(())
}
