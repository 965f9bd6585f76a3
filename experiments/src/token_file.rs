//! The token file (`.vtok`): a clip's ids at their bit width, and all that is needed to turn them back into the video.
//!
//! Little-endian throughout:
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | magic `VIREOTOK` |
//! | 4 | version, 1 |
//! | 4 | length of the header in bytes, n |
//! | 8 | latent frames T' |
//! | 8 | frames of the original video |
//! | n | header: JSON of [`Header`] |
//! | … | ids in the order t, y, x; each `bits` wide, least significant bit first, without gaps; last byte zero-filled |
//! | 32 | BLAKE3 of all bytes before the ids followed by the BLAKE3 of the id bytes |
//!
//! The two frame counts stand outside the JSON so that a stream can be written before its length is known.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tch::Tensor;
use video_core::{Compression, TokenGrid};

const MAGIC: &[u8; 8] = b"VIREOTOK";
const VERSION: u32 = 1;
const FIXED_BYTES: u64 = 32;

/// What a token file says of its ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// How many ids the tokenizer has.
    pub vocabulary_size: i64,
    /// Bits of each id in the file: the least that hold the vocabulary.
    pub bits: u32,
    /// Latent rows H'.
    pub grid_height: i64,
    /// Latent columns W'.
    pub grid_width: i64,
    /// Strides of the tokenizer.
    pub compression: Compression,
    /// Rows of the original video; decoding crops to them.
    pub height: i64,
    /// Columns of the original video; decoding crops to them.
    pub width: i64,
    /// Frames per second.
    pub frame_rate: f64,
    /// Fingerprint of the tokenizer's config and weights: ids mean nothing to another tokenizer.
    pub tokenizer: String,
}

/// The least number of bits that hold ids `0..vocabulary_size`.
pub fn bits_for(vocabulary_size: i64) -> u32 {
    (64 - (vocabulary_size.max(2) - 1).leading_zeros()).max(1)
}

/// Writes a token file latent frame by latent frame. Nothing stands under the final name before [`Writer::finish`].
pub struct Writer {
    header: Header,
    target: PathBuf,
    file: BufWriter<tempfile::NamedTempFile>,
    ids_hash: blake3::Hasher,
    latent_frames: u64,
    pending: u128,
    pending_bits: u32,
}

impl Writer {
    /// Begins a file.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn create(target: &Path, header: Header) -> Result<Self> {
        let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::NamedTempFile::new_in(folder)
            .with_context(|| format!("cannot write into the folder {}", folder.display()))?;
        let mut writer = Self {
            header,
            target: target.into(),
            file: BufWriter::new(file),
            ids_hash: blake3::Hasher::new(),
            latent_frames: 0,
            pending: 0,
            pending_bits: 0,
        };
        let head = writer.head(0)?;
        writer.put(&head)?;
        Ok(writer)
    }

    fn head(&self, frames: u64) -> Result<Vec<u8>> {
        let json = serde_json::to_vec(&self.header)?;
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend((json.len() as u32).to_le_bytes());
        head.extend(self.latent_frames.to_le_bytes());
        head.extend(frames.to_le_bytes());
        head.extend(json);
        Ok(head)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).with_context(|| format!("cannot write {}", self.target.display()))
    }

    /// Appends latent frames of one clip, `[1, t, H', W']`.
    ///
    /// # Errors
    /// Another grid size than the header's, an id outside the vocabulary, a full disk.
    pub fn push(&mut self, grid: &TokenGrid) -> Result<()> {
        let shape = grid.shape();
        ensure!(
            grid.batch() == 1
                && shape.height == self.header.grid_height
                && shape.width == self.header.grid_width,
            "a grid of {} × {shape:?} does not continue this file, which holds one clip of {} × {}",
            grid.batch(),
            self.header.grid_height,
            self.header.grid_width
        );
        grid.check_vocabulary(self.header.vocabulary_size)?;
        let ids: Vec<i64> = Vec::try_from(grid.ids().contiguous().view(-1))?;
        let mut bytes = Vec::with_capacity(ids.len() * self.header.bits as usize / 8 + 1);
        for id in ids {
            self.pending |= (id as u128) << self.pending_bits;
            self.pending_bits += self.header.bits;
            while self.pending_bits >= 8 {
                bytes.push(self.pending as u8);
                self.pending >>= 8;
                self.pending_bits -= 8;
            }
        }
        self.latent_frames += shape.frames as u64;
        self.ids_hash.update(&bytes);
        self.put(&bytes)
    }

    /// Ends the file, whose video had `frames` frames before padding, and puts it under its name.
    ///
    /// # Errors
    /// A full disk, an unwritable target.
    pub fn finish(mut self, frames: u64) -> Result<PathBuf> {
        if self.pending_bits > 0 {
            let last = [self.pending as u8];
            self.ids_hash.update(&last);
            self.put(&last)?;
        }
        let head = self.head(frames)?;
        let checksum = checksum(&head, &self.ids_hash);
        self.put(checksum.as_bytes())?;
        let in_file = || format!("cannot write {}", self.target.display());
        let mut file = self.file.into_inner().map_err(|e| e.into_error()).with_context(in_file)?;
        file.seek(SeekFrom::Start(0)).with_context(in_file)?;
        file.write_all(&head).with_context(in_file)?;
        file.as_file().sync_all().with_context(in_file)?;
        file.persist(&self.target).map_err(|e| e.error).with_context(in_file)?;
        Ok(self.target)
    }
}

fn checksum(head: &[u8], ids: &blake3::Hasher) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(head);
    hasher.update(ids.finalize().as_bytes());
    hasher.finalize()
}

/// Reads a token file latent frame by latent frame, after its checksum was found right.
#[derive(Debug)]
pub struct Reader {
    /// What the file says of its ids.
    pub header: Header,
    /// Latent frames T'.
    pub latent_frames: i64,
    /// Frames of the original video.
    pub frames: i64,
    path: PathBuf,
    file: BufReader<File>,
    left: i64,
    pending: u128,
    pending_bits: u32,
}

impl Reader {
    /// Opens a file, and reads it through once to check that it is whole.
    ///
    /// # Errors
    /// No token file, one of a later version, one cut short or changed.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display();
        let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
        let length = file.metadata()?.len();
        let mut file = BufReader::new(file);
        let cut_short = || format!("{name} is cut short: make it again with `vireo encode`");
        let mut fixed = [0u8; FIXED_BYTES as usize];
        ensure!(
            length >= FIXED_BYTES,
            "{name} is no Vireo token file (or cut short): `vireo encode` makes one"
        );
        file.read_exact(&mut fixed)?;
        ensure!(&fixed[..8] == MAGIC, "{name} is no Vireo token file: `vireo encode` makes one");
        let u32_at = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("8 bytes"));
        let (version, header_bytes) = (u32_at(8), u64::from(u32_at(12)));
        ensure!(
            version == VERSION,
            "{name} has token-file version {version}: this vireo reads version {VERSION}"
        );
        let (latent_frames, frames) = (u64_at(16), u64_at(24));
        ensure!(length >= FIXED_BYTES + header_bytes + 32, cut_short());
        let mut json = vec![0u8; header_bytes as usize];
        file.read_exact(&mut json)?;
        let header: Header = serde_json::from_slice(&json)
            .with_context(|| format!("{name} is damaged: its header cannot be read"))?;
        ensure!(
            header.bits == bits_for(header.vocabulary_size)
                && header.grid_height > 0
                && header.grid_width > 0,
            "{name} is damaged: its header contradicts itself"
        );
        let bits = (header.grid_height as u128)
            .saturating_mul(header.grid_width as u128)
            .saturating_mul(u128::from(latent_frames))
            .saturating_mul(u128::from(header.bits));
        let id_bytes = bits.div_ceil(8);
        let whole = u128::from(FIXED_BYTES + header_bytes + 32) + id_bytes;
        ensure!(u128::from(length) >= whole, cut_short());
        ensure!(u128::from(length) == whole, "{name} is damaged: bytes follow its end");

        let ids_start = file.stream_position()?;
        let mut ids_hash = blake3::Hasher::new();
        std::io::copy(&mut (&mut file).take(id_bytes as u64), &mut ids_hash)?;
        let mut stored = [0u8; 32];
        file.read_exact(&mut stored)?;
        let head = [&fixed[..], &json[..]].concat();
        if checksum(&head, &ids_hash) != stored {
            bail!("{name} is damaged: its checksum does not fit. Make it again with `vireo encode`");
        }
        file.seek(SeekFrom::Start(ids_start))?;
        Ok(Self {
            header,
            latent_frames: latent_frames as i64,
            frames: frames as i64,
            path: path.into(),
            file,
            left: latent_frames as i64,
            pending: 0,
            pending_bits: 0,
        })
    }

    /// The next latent frames, at most `count`; `None` at the end.
    ///
    /// # Errors
    /// The file changed under the reader.
    pub fn next(&mut self, count: i64) -> Result<Option<TokenGrid>> {
        let count = count.min(self.left);
        if count < 1 {
            return Ok(None);
        }
        let Header { bits, grid_height, grid_width, vocabulary_size, .. } = self.header;
        let mut ids = Vec::with_capacity((count * grid_height * grid_width) as usize);
        let mut byte = [0u8; 1];
        while ids.len() < ids.capacity() {
            while self.pending_bits < bits {
                self.file
                    .read_exact(&mut byte)
                    .with_context(|| format!("cannot read {}", self.path.display()))?;
                self.pending |= u128::from(byte[0]) << self.pending_bits;
                self.pending_bits += 8;
            }
            ids.push((self.pending & ((1u128 << bits) - 1)) as i64);
            self.pending >>= bits;
            self.pending_bits -= bits;
        }
        self.left -= count;
        let grid = TokenGrid::new(Tensor::from_slice(&ids).view([1, count, grid_height, grid_width]))?;
        grid.check_vocabulary(vocabulary_size)?;
        Ok(Some(grid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn header(vocabulary_size: i64) -> Header {
        Header {
            vocabulary_size,
            bits: bits_for(vocabulary_size),
            grid_height: 3,
            grid_width: 5,
            compression: Compression { time: 4, height: 8, width: 8, bits_per_token: 10.0 },
            height: 20,
            width: 38,
            frame_rate: 24.0,
            tokenizer: "abc".into(),
        }
    }

    fn ids(vocabulary_size: i64, frames: i64) -> TokenGrid {
        TokenGrid::new(Tensor::randint(vocabulary_size, [1, frames, 3, 5], (Kind::Int64, tch::Device::Cpu)))
            .unwrap()
    }

    #[test]
    fn ids_come_back_at_their_bit_width() {
        let folder = tempfile::tempdir().unwrap();
        for vocabulary_size in [2, 3, 1000, 1 << 10, 64_000, 1 << 18, 1 << 40, (1 << 40) + 1] {
            let path = folder.path().join(format!("{vocabulary_size}.vtok"));
            let (first, rest) = (ids(vocabulary_size, 1), ids(vocabulary_size, 3));
            let mut writer = Writer::create(&path, header(vocabulary_size)).unwrap();
            writer.push(&first).unwrap();
            writer.push(&rest).unwrap();
            writer.finish(13).unwrap();
            let json = serde_json::to_vec(&header(vocabulary_size)).unwrap().len() as u64;
            let id_bytes = (4 * 15 * u64::from(bits_for(vocabulary_size))).div_ceil(8);
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 32 + json + id_bytes + 32);
            let mut reader = Reader::open(&path).unwrap();
            assert_eq!((reader.latent_frames, reader.frames), (4, 13));
            let back = [reader.next(2).unwrap().unwrap(), reader.next(9).unwrap().unwrap()];
            assert!(reader.next(1).unwrap().is_none());
            let whole = TokenGrid::cat_time(&[first, rest]).unwrap();
            assert_eq!(TokenGrid::cat_time(&back).unwrap().ids(), whole.ids());
        }
    }

    #[test]
    fn a_damaged_file_is_refused_wherever_the_damage_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.vtok");
        let mut writer = Writer::create(&path, header(1024)).unwrap();
        assert!(!path.exists(), "nothing half-written under the final name");
        writer.push(&ids(1024, 2)).unwrap();
        writer.finish(5).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for position in 0..whole.len() {
            let mut changed = whole.clone();
            changed[position] ^= 1;
            std::fs::write(&path, &changed).unwrap();
            assert!(Reader::open(&path).is_err(), "byte {position} changed");
        }
        for length in [0, 7, 31, 40, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = Reader::open(&path).unwrap_err().to_string();
            assert!(error.contains("cut short") || error.contains("no Vireo token file"), "{error}");
        }
    }

    #[test]
    fn ids_outside_the_vocabulary_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(&folder.path().join("clip.vtok"), header(1000)).unwrap();
        let odd = TokenGrid::new(Tensor::full([1, 1, 3, 5], 1000, (Kind::Int64, tch::Device::Cpu))).unwrap();
        assert!(writer.push(&odd).unwrap_err().to_string().contains("id 1000"));
    }
}
