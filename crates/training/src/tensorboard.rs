//! TensorBoard's event files, scalars only: protobuf messages `tensorflow.Event` in TFRecord frames, each a few dozen
//! bytes, so they are written by hand.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::Result;
use crate::files::{cannot_write, make_folder};

/// One process' event file of a run.
#[derive(Debug)]
pub(crate) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Starts a file in `folder/tensorboard`. TensorBoard forgets the points after `step` that an earlier, killed
    /// process of the run wrote.
    pub fn create(folder: &Path, step: u64) -> Result<Self> {
        let folder = folder.join("tensorboard");
        make_folder(&folder)?;
        let now = now();
        // Readers take the files in the order of their names.
        let name =
            format!("events.out.tfevents.{:010}.{:06}.{}", now as u64, micros(now), std::process::id());
        let path = folder.join(name);
        let file =
            OpenOptions::new().create_new(true).append(true).open(&path).map_err(cannot_write(&path))?;
        let mut events = Self { path, file };
        events.write(0, |event| event.bytes(FILE_VERSION, b"brain.Event:2"))?;
        let mut start = Message::default();
        start.varint(SESSION_STATUS, SESSION_START);
        events.write(step + 1, |event| event.bytes(SESSION_LOG, &start.0))?;
        Ok(events)
    }

    /// Adds one point to each named curve.
    pub fn scalars<'a>(
        &mut self,
        step: u64,
        scalars: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<()> {
        let mut summary = Message::default();
        for (name, value) in scalars {
            let mut point = Message::default();
            point.bytes(VALUE_TAG, name.as_bytes());
            point.float(VALUE_SIMPLE, value as f32);
            summary.bytes(SUMMARY_VALUE, &point.0);
        }
        self.write(step, |event| event.bytes(SUMMARY, &summary.0))
    }

    fn write(&mut self, step: u64, fill: impl FnOnce(&mut Message)) -> Result<()> {
        let mut event = Message::default();
        event.double(WALL_TIME, now());
        event.varint(STEP, step);
        fill(&mut event);
        self.file.write_all(&frame(&event.0)).map_err(cannot_write(&self.path))
    }
}

// Field numbers of tensorflow/core/util/event.proto and framework/summary.proto.
const WALL_TIME: u64 = 1;
const STEP: u64 = 2;
const FILE_VERSION: u64 = 3;
const SUMMARY: u64 = 5;
const SESSION_LOG: u64 = 7;
const SESSION_STATUS: u64 = 1;
const SESSION_START: u64 = 1;
const SUMMARY_VALUE: u64 = 1;
const VALUE_TAG: u64 = 1;
const VALUE_SIMPLE: u64 = 2;

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.raw_varint(field << 3);
        self.raw_varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.raw_varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.raw_varint(field << 3 | 2);
        self.raw_varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.raw_varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }
}

/// A TFRecord: length, its checksum, data, its checksum.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_crc32c(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_crc32c(data).to_le_bytes());
    record
}

/// CRC-32C, rotated and shifted as the format demands.
fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// CRC-32C (Castagnoli), bit by bit: a few hundred bytes per logged step need no table.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 * (crc & 1)))
    })
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn micros(seconds: f64) -> u64 {
    (seconds.fract() * 1e6) as u64
}
