//! The training loop: optimizers, schedules, EMA, checkpoints with exact resume, logs.
//!
//! A system says what one optimisation step's losses are ([`Objective`]; a GAN is one objective with two [`Part`]s), a
//! data set gives [`Batches`] with a position, and [`Trainer`] does the rest in one folder: fused AdamW, warm-up and
//! [`Schedule`], clipping, accumulation, EMA, bfloat16 on CUDA, `metrics.jsonl`, TensorBoard, a progress bar,
//! checkpoints. A run that is killed at any step and started again ends with the same weights and the same metrics, bit
//! for bit, as one that never stopped: each step's draws are seeded from (seed, step), the data know their position,
//! and lines after the last checkpoint are cut and written again.
//!
//! ```
//! use tch::{Device, Kind, Tensor, nn};
//! use training::{Batches, Objective, Part, StepLoss, TrainConfig, Trainer};
//!
//! struct Line(nn::VarStore, nn::Linear);
//!
//! impl Objective for Line {
//!     type Batch = Tensor;
//!     fn parts(&self) -> Vec<Part<'_>> {
//!         vec![Part::new("model", &self.0)]
//!     }
//!     fn loss(&mut self, _part: usize, x: &Tensor, _step: u64) -> video_core::Result<StepLoss> {
//!         let mse = (x.apply(&self.1) - x * 3.0).square().mean(Kind::Float);
//!         Ok(StepLoss::new(mse))
//!     }
//! }
//!
//! struct Numbers(u64);
//!
//! impl Batches for Numbers {
//!     type Batch = Tensor;
//!     fn next(&mut self) -> video_core::Result<Tensor> {
//!         self.0 += 1;
//!         Ok(Tensor::from_slice(&[self.0 as f32 % 3.0, self.0 as f32 % 5.0]).unsqueeze(1))
//!     }
//!     fn position(&self) -> u64 {
//!         self.0
//!     }
//!     fn seek(&mut self, position: u64) -> video_core::Result<()> {
//!         self.0 = position;
//!         Ok(())
//!     }
//! }
//!
//! # fn main() -> training::Result<()> {
//! # let folder = std::env::temp_dir().join(format!("training-doc-{}", std::process::id()));
//! video_core::seeds::seed_torch(0, video_core::seeds::Stream::Init, 0);
//! let store = nn::VarStore::new(Device::Cpu);
//! let layer = nn::linear(store.root(), 1, 1, Default::default());
//! let config = TrainConfig { steps: 20, learning_rate: 0.1, ..TrainConfig::default() };
//! let outcome = Trainer::new(&folder, config)?.train(&mut Line(store, layer), &mut Numbers(0), |_, _| Ok(vec![]))?;
//! assert_eq!(outcome.step, 20);
//! # let _ = std::fs::remove_dir_all(folder);
//! # Ok(())
//! # }
//! ```

mod checkpoint;
mod config;
mod error;
mod files;
mod interrupt;
mod lock;
mod metrics_file;
mod muon;
mod objective;
mod optimizer;
mod part_state;
mod progress;
mod scalars;
mod schedule;
mod tensorboard;
mod trainer;
mod weights;

pub use checkpoint::{Checkpoint, first_difference};
pub use config::{Bf16, EmaConfig, MuonConfig, PartConfig, TrainConfig};
pub use error::{Error, Result};
pub use interrupt::request_stop;
pub use objective::{Batches, Objective, Part, StepLoss};
pub use schedule::Schedule;
pub use trainer::{Outcome, Trainer};
pub use weights::{Weights, copy_into, load_weights, save_weights, variables};
