//! The command line: verbs, their arguments and help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Video tokenizers: train, reconstruct, encode, decode, evaluate, verify.
#[derive(Debug, Parser)]
#[command(name = "vireo", version, arg_required_else_help = true, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Print every warning and debug message (RUST_LOG refines it).
    #[arg(long, short, global = true)]
    pub verbose: bool,
    /// CPU threads that libtorch uses; all cores if not given.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    pub threads: Option<i32>,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train, evaluate and report, each stage only if its output is not there already
    Run(RunArgs),
    /// The training stage alone; continues where an interrupted run stopped
    Train(RunArgs),
    /// Encode and decode a video or an image; write it beside the original, with metrics
    Reconstruct(ReconstructArgs),
    /// Turn a video or an image into a token file
    Encode(EncodeArgs),
    /// Turn a token file back into a video or an image
    Decode(DecodeArgs),
    /// Generate clips, or continue one, with a run's generator
    Sample(SampleArgs),
    /// Train a next-scale generator at several widths; fit how its loss falls with size and with computation
    Scaling(ScalingArgs),
    /// Train Perceiver AR on the synthetic copy task and tell its accuracy
    CopyTask(RunArgs),
    /// Evaluate a run's tokenizer, and its generator if it has one, on held-out clips
    Eval(EvalArgs),
    /// Run golden cases: do our numbers equal those of the reference implementations?
    Verify(VerifyArgs),
    /// Turn a published checkpoint into a Vireo tokenizer or generator
    Import(ImportArgs),
    /// Show a tokenizer's layers, parameters, compression and tokens per second of video
    Describe(DescribeArgs),
    /// Show what is installed, which device is used, what is missing and how to get it
    Doctor,
    /// Print a table of evaluated runs, the best first
    Compare {
        /// The runs' folders
        #[arg(required = true)]
        runs: Vec<PathBuf>,
    },
    /// Write report.html of a run again
    Report {
        /// The run's folder
        run: PathBuf,
    },
}

/// Arguments of `run` and `train`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// A TOML config, such as experiments/configs/quickstart.toml
    pub config: PathBuf,
    /// Override a key of the config (TOML value); may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Folder that holds the runs
    #[arg(long, default_value = "runs")]
    pub runs: PathBuf,
}

/// A trained tokenizer, named by its run's folder or its weights file.
#[derive(Debug, Args)]
pub struct CheckpointArg {
    /// A run's folder, or a tokenizer's .safetensors
    #[arg(long, short, default_value = "runs/quickstart")]
    pub checkpoint: PathBuf,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// How a video is read before it is encoded.
#[derive(Debug, Args)]
pub struct ReadArgs {
    /// Scale to HEIGHTxWIDTH first (covers the frame, then crops the centre)
    #[arg(long, value_name = "HxW")]
    pub size: Option<String>,
    /// Frames per second to read at
    #[arg(long)]
    pub frame_rate: Option<f64>,
    /// Stop after so many frames
    #[arg(long)]
    pub frames: Option<u64>,
    /// Start so many seconds into the video
    #[arg(long, default_value_t = 0.0)]
    pub start: f64,
    /// Repeat the last frame until the tokenizer's time stride fits; decoding removes it again
    #[arg(long)]
    pub pad: bool,
}

/// Arguments of `reconstruct`.
#[derive(Debug, Args)]
pub struct ReconstructArgs {
    /// A video or an image
    pub input: PathBuf,
    /// Where to write original and reconstruction side by side (.mp4, .gif; .png for an image)
    #[arg(long, short)]
    pub output: Option<PathBuf>,
    /// The tokenizer.
    #[command(flatten)]
    pub checkpoint: CheckpointArg,
    /// How to read the input.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// Arguments of `encode`.
#[derive(Debug, Args)]
pub struct EncodeArgs {
    /// A video or an image
    pub input: PathBuf,
    /// The token file; the input's name with .vtok if not given
    #[arg(long, short)]
    pub output: Option<PathBuf>,
    /// The tokenizer.
    #[command(flatten)]
    pub checkpoint: CheckpointArg,
    /// How to read the input.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// Arguments of `decode`.
#[derive(Debug, Args)]
pub struct DecodeArgs {
    /// A token file
    pub input: PathBuf,
    /// The video (.mp4, .gif), or .png for a single frame; the input's name with .mp4 or .png if not given
    #[arg(long, short)]
    pub output: Option<PathBuf>,
    /// The tokenizer that encoded it.
    #[command(flatten)]
    pub checkpoint: CheckpointArg,
}

/// Arguments of `sample`.
#[derive(Debug, Args)]
pub struct SampleArgs {
    /// A run's folder with a tokenizer and a generator.
    #[command(flatten)]
    pub checkpoint: CheckpointArg,
    /// Continue this video
    #[arg(long, value_name = "VIDEO")]
    pub first_frames: Option<PathBuf>,
    /// Fill in the frames between the first ones and the end of this video or image
    #[arg(long, value_name = "VIDEO", requires = "first_frames")]
    pub last_frames: Option<PathBuf>,
    /// How many frames --first-frames gives; --last-frames gives as many latent frames
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub frames: u64,
    /// Make a part of this video anew: all but what --keep says, or what --renew says
    #[arg(long, value_name = "VIDEO", conflicts_with = "first_frames", requires = "rectangle")]
    pub edit: Option<PathBuf>,
    /// Outpainting: what is kept of the edited video, in pixels of the clip
    #[arg(long, value_name = "X,Y,WIDTH,HEIGHT", group = "rectangle", requires = "edit")]
    pub keep: Option<String>,
    /// Inpainting: what is made anew of the edited video, in pixels of the clip
    #[arg(long, value_name = "X,Y,WIDTH,HEIGHT", group = "rectangle", requires = "edit")]
    pub renew: Option<String>,
    /// What the clip shall show, for a generator that was trained with texts
    #[arg(long)]
    pub text: Option<String>,
    /// The folder of the text encoder, if it is no longer where it was in training
    #[arg(long, value_name = "FOLDER", requires = "text")]
    pub text_encoder: Option<PathBuf>,
    /// The class to generate
    #[arg(long)]
    pub class: Option<i64>,
    /// How many clips, drawn independently
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(i64).range(1..))]
    pub count: i64,
    /// Seed of every draw
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Divides the logits; 0 takes the likeliest
    #[arg(long, default_value_t = 1.0)]
    pub temperature: f64,
    /// Draw among the K likeliest tokens only
    #[arg(long, value_name = "K")]
    pub top_k: Option<i64>,
    /// Draw among the likeliest tokens that make up this probability
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Weight of classifier-free guidance; 1 is none
    #[arg(long, default_value_t = 1.0)]
    pub guidance: f64,
    /// Where to write the clips, beside each other (.mp4, .gif; .png for images)
    #[arg(long, short, default_value = "samples.gif")]
    pub output: PathBuf,
    /// Frames per second of the written file
    #[arg(long, default_value_t = 8.0)]
    pub frame_rate: f64,
}

/// Arguments of `scaling`.
#[derive(Debug, Args)]
pub struct ScalingArgs {
    /// The run whose generator is trained at each width; its tokenizer is trained once.
    #[command(flatten)]
    pub run: RunArgs,
    /// The widths
    #[arg(long, value_delimiter = ',', value_name = "C,C,...", required = true)]
    pub widths: Vec<i64>,
}

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A run's folder
    pub run: PathBuf,
    /// Override a key of the run's config for this evaluation, such as data.source="holiday.mp4"
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Print only; leave the run's evaluation.json as it is
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A golden case, or a folder of them
    pub path: PathBuf,
    /// Only entries that begin so
    #[arg(long)]
    pub entry: Option<String>,
    /// A row for every output, not only for those that fail
    #[arg(long)]
    pub all: bool,
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Which system published it, such as cosmos-cv4x8x8 (docs/checkpoints.md lists them)
    pub system: String,
    /// .safetensors, a PyTorch zip checkpoint (read without running any code in it), or a flax checkpoint
    pub input: PathBuf,
    /// The .safetensors to write
    #[arg(long, short)]
    pub output: PathBuf,
    /// Of a generator: the imported tokenizer on whose tokens it was trained
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
}

/// Arguments of `describe`.
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// A config file, a run's folder, or a tokenizer's .safetensors
    pub what: PathBuf,
    /// The clip for which sizes and costs are stated; the config's own if not given
    #[arg(long, value_name = "TxHxW")]
    pub clip: Option<String>,
}
