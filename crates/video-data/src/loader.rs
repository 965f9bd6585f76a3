//! A prefetching loader whose n-th batch depends on n and the source alone, so that its position is all there is to save.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tch::Tensor;

use crate::{ClipSource, Error, Result};

/// How batches are made.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// Clips of a batch.
    pub batch_size: usize,
    /// Threads that make batches.
    pub workers: usize,
    /// Batches made ahead.
    pub prefetch: usize,
    /// Of the order of the clips.
    pub seed: u64,
}

/// A batch of clips.
#[derive(Debug)]
pub struct Batch {
    /// Float `[B, 3, T, H, W]` in [-1, 1].
    pub video: Tensor,
    /// Where each clip comes from.
    pub names: Vec<String>,
    /// Its number.
    pub position: u64,
}

/// Batches in order, made ahead by worker threads.
#[derive(Debug)]
pub struct Loader {
    results: mpsc::Receiver<(u64, Result<Batch>)>,
    /// Batches that came before their turn.
    early: BTreeMap<u64, Result<Batch>>,
    tickets: Option<mpsc::SyncSender<()>>,
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
    position: u64,
    skipped: usize,
    waited: Duration,
}

impl Loader {
    /// Begins to make batches from a position on.
    ///
    /// # Errors
    /// A batch of no clips.
    pub fn new(source: Arc<dyn ClipSource>, config: LoaderConfig, position: u64) -> Result<Self> {
        if config.batch_size == 0 {
            return Err(Error::config("batch_size", 0, "at least 1"));
        }
        let skipped = source.skipped();
        let (tickets, taken) = mpsc::sync_channel(config.prefetch.max(1));
        let taken = Arc::new(std::sync::Mutex::new(taken));
        let (sender, results) = mpsc::channel();
        let next = Arc::new(AtomicU64::new(position));
        let stop = Arc::new(AtomicBool::new(false));
        let workers = (0..config.workers.max(1))
            .map(|_| {
                let (source, taken, sender) = (source.clone(), taken.clone(), sender.clone());
                let (next, stop, batch_size) = (next.clone(), stop.clone(), config.batch_size);
                std::thread::spawn(move || {
                    loop {
                        // A ticket is a place in the queue: taking it with the number keeps at most `prefetch` ahead.
                        let number = {
                            let Ok(queue) = taken.lock() else { return };
                            if queue.recv().is_err() || stop.load(Ordering::Relaxed) {
                                return;
                            }
                            next.fetch_add(1, Ordering::Relaxed)
                        };
                        if sender.send((number, batch(&*source, number, batch_size))).is_err() {
                            return;
                        }
                    }
                })
            })
            .collect();
        for _ in 0..config.prefetch.max(1) {
            // The queue has room for just so many.
            let _ = tickets.try_send(());
        }
        Ok(Self {
            results,
            early: BTreeMap::new(),
            tickets: Some(tickets),
            stop,
            workers,
            position,
            skipped,
            waited: Duration::ZERO,
        })
    }

    /// The next batch.
    ///
    /// # Errors
    /// A clip has become unreadable.
    #[expect(clippy::should_implement_trait, reason = "an endless, fallible stream is no iterator")]
    pub fn next(&mut self) -> Result<Batch> {
        let began = Instant::now();
        let batch = loop {
            if let Some(batch) = self.early.remove(&self.position) {
                break batch;
            }
            match self.results.recv() {
                Ok((number, batch)) => {
                    self.early.insert(number, batch);
                }
                Err(_) => {
                    return Err(Error::config(
                        "loader",
                        "stopped",
                        "worker threads that run; one of them panicked",
                    ));
                }
            }
        };
        self.waited += began.elapsed();
        self.position += 1;
        if let Some(tickets) = &self.tickets {
            let _ = tickets.try_send(());
        }
        batch
    }

    /// Batches handed out, counted from the first of the run.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How long [`Loader::next`] has waited so far.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Files of the source that could not be read.
    pub fn skipped(&self) -> usize {
        self.skipped
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.tickets = None;
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn batch(source: &dyn ClipSource, number: u64, batch_size: usize) -> Result<Batch> {
    let first = number * batch_size as u64;
    let clips = (first..first + batch_size as u64).map(|n| source.clip(n)).collect::<Result<Vec<_>>>()?;
    let videos: Vec<Tensor> = clips.iter().map(crate::Clip::to_float).collect();
    Ok(Batch {
        video: Tensor::stack(&videos, 0),
        names: clips.into_iter().map(|clip| clip.name).collect(),
        position: number,
    })
}
