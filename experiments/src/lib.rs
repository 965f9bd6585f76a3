//! The composition: configs, the pipeline from data to report, and the verbs of the binary `vireo`.
//!
//! A run is a folder. [`pipeline`] fills it stage by stage from a [`config::RunConfig`]: training, evaluation on held-out
//! clips, report; each verb of [`commands`] works on such a folder, or on one file.

pub mod cli;
pub mod commands;
pub mod config;
pub mod evaluation;
pub mod files;
pub mod generation;
pub mod generator;
pub mod media;
pub mod objective;
pub mod pipeline;
pub mod plots;
pub mod pretrained;
pub mod report;
pub mod scaling;
pub mod text;
pub mod token_cache;
pub mod token_file;
pub mod tokenizer;
pub mod toml_file;
