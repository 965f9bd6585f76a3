//! A prefetching loader whose n-th batch depends on n, the source and the seed alone, so that its position is all there
//! is to save.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tch::Tensor;

use crate::order::{Order, Slot};
use crate::{Clip, ClipSource, Error, Failure, Result};

/// Clips tried in place of one that cannot be read.
const ATTEMPTS: u64 = 16;

/// How batches are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Clips of a batch.
    pub batch_size: usize,
    /// Threads that make batches. The batches do not depend on it.
    pub workers: usize,
    /// Batches made ahead.
    pub prefetch: usize,
    /// Of the order of the clips, and of how training cuts and mirrors them.
    pub seed: u64,
}

/// A batch of clips of one size.
#[derive(Debug)]
pub struct Batch {
    /// Float `[B, 3, T, H, W]` in [-1, 1].
    pub video: Tensor,
    /// int64 `[B]`, where every clip has a class.
    pub classes: Option<Tensor>,
    /// int64 `[B, T - 1]`, where every clip has actions.
    pub actions: Option<Tensor>,
    /// What the data set says of each clip, where it says something of every one.
    pub captions: Option<Vec<String>>,
    /// Where each clip comes from.
    pub names: Vec<String>,
    /// Its number.
    pub position: u64,
}

/// A batch on its way to the consumer.
struct Made {
    batch: Result<Batch>,
    failures: Vec<Failure>,
}

/// What workers and consumer share.
struct Shared {
    state: Mutex<State>,
    /// Something was made, or there is room again, or all is over.
    changed: Condvar,
    source: Arc<dyn ClipSource>,
    order: Order,
    prefetch: u64,
}

struct State {
    /// The consumer's next batch.
    wanted: u64,
    /// The workers' next batch.
    next: u64,
    made: BTreeMap<u64, Made>,
    /// Counts seeks: what was begun before one is thrown away.
    era: u64,
    stop: bool,
}

/// Endless batches in order, made ahead by worker threads.
pub struct Loader {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    position: u64,
    failures: Vec<Failure>,
    known: BTreeSet<String>,
    waited: Duration,
    /// When the first batch was asked for.
    began: Option<Instant>,
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader")
            .field("position", &self.position)
            .field("workers", &self.workers.len())
            .finish()
    }
}

impl Loader {
    /// Begins to make batches from a position on.
    ///
    /// # Errors
    /// A batch of no clips; threads that the system refuses.
    pub fn new(source: Arc<dyn ClipSource>, config: LoaderConfig, position: u64) -> Result<Self> {
        if config.batch_size == 0 {
            return Err(Error::config("batch_size", 0, "at least 1"));
        }
        let failures = source.failures().to_vec();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                wanted: position,
                next: position,
                made: BTreeMap::new(),
                era: 0,
                stop: false,
            }),
            changed: Condvar::new(),
            order: Order::new(source.buckets(), config.batch_size as u64, config.seed),
            source,
            prefetch: config.prefetch.max(1) as u64,
        });
        let mut loader = Self {
            shared,
            workers: Vec::new(),
            position,
            failures,
            known: BTreeSet::new(),
            waited: Duration::ZERO,
            began: None,
        };
        for number in 0..config.workers.max(1) {
            let shared = loader.shared.clone();
            let worker =
                std::thread::Builder::new().name(format!("clips {number}")).spawn(move || shared.work());
            // Those that run already stop when the loader is dropped.
            let refused = |e: std::io::Error| {
                Error::config("workers", config.workers, &format!("as many threads as there may be ({e})"))
            };
            loader.workers.push(worker.map_err(refused)?);
        }
        Ok(loader)
    }

    /// The next batch. Clips that cannot be read are replaced by others, and counted.
    ///
    /// # Errors
    /// So many clips in a row are unreadable that nothing good can come; ffmpeg has gone.
    #[expect(clippy::should_implement_trait, reason = "an endless, fallible stream is no iterator")]
    pub fn next(&mut self) -> Result<Batch> {
        let began = Instant::now();
        self.began.get_or_insert(began);
        let mut state = self.shared.lock();
        let made = loop {
            match state.made.remove(&self.position) {
                Some(made) => break made,
                None => state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        };
        state.wanted = self.position + 1;
        drop(state);
        self.shared.changed.notify_all();
        self.waited += began.elapsed();
        self.position += 1;
        self.note(made.failures);
        made.batch
    }

    /// Reports what could not be read, each file once.
    fn note(&mut self, failures: Vec<Failure>) {
        for failure in failures {
            if self.known.insert(failure.name.clone()) {
                tracing::warn!("skipped: {failure}");
                self.failures.push(failure);
            }
        }
    }

    /// Batches handed out, counted from the first of the run.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes to a position that [`Loader::position`] gave: the next batch is the one of that number.
    pub fn seek(&mut self, position: u64) {
        if position == self.position {
            return;
        }
        self.position = position;
        let mut state = self.shared.lock();
        (state.wanted, state.next) = (position, position);
        state.era += 1;
        state.made.clear();
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Files that were left out when the source was opened, or could not be read since.
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// How many such files there are.
    pub fn skipped(&self) -> usize {
        self.failures.len()
    }

    /// How long [`Loader::next`] has waited so far.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Share of the time since the first call of [`Loader::next`] that was spent waiting in it, 0 to 1.
    pub fn waiting_share(&self) -> f64 {
        let all = self.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        if all > 0.0 { self.waited.as_secs_f64() / all } else { 0.0 }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if state.stop {
                return;
            }
            if state.next >= state.wanted + self.prefetch {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (number, era) = (state.next, state.era);
            state.next += 1;
            drop(state);
            let made = self.make(number);
            state = self.lock();
            if state.era == era {
                state.made.insert(number, made);
                self.changed.notify_all();
            }
        }
    }

    fn make(&self, number: u64) -> Made {
        let mut failures = Vec::new();
        let clips: Result<Vec<Clip>> =
            self.order.batch(number).into_iter().map(|slot| self.clip(number, slot, &mut failures)).collect();
        Made { batch: clips.map(|clips| collate(clips, number)), failures }
    }

    /// The clip of a place, or the first readable one of those drawn in its stead.
    fn clip(&self, number: u64, slot: Slot, failures: &mut Vec<Failure>) -> Result<Clip> {
        let mut drawn = slot;
        for attempt in 1..=ATTEMPTS {
            // A decoder that panics must not leave the consumer waiting for ever.
            let clip = catch_unwind(AssertUnwindSafe(|| self.source.varied(drawn.index, drawn.seed)))
                .unwrap_or_else(|_| {
                    let name = format!("clip {}", drawn.index);
                    Err(Error::unreadable(Path::new(&name), "decoding it panicked"))
                });
            match clip {
                Err(error) if error.is_of_one_file() => failures.push(Failure::of(&error)),
                other => return other,
            }
            drawn = self.order.replacement(number, slot, attempt);
        }
        let failures = failures.split_off(failures.len() - ATTEMPTS as usize);
        Err(Error::AllUnreadable { what: "clips that were tried in a row".into(), failures })
    }
}

/// Clips of one size as a batch. Plain loops: libtorch would start its own threads beside each worker.
fn collate(clips: Vec<Clip>, position: u64) -> Batch {
    let shape = clips.first().map(|clip| clip.video.size()).unwrap_or_default();
    let numel = shape.iter().product::<i64>() as usize;
    let table: [f32; 256] = std::array::from_fn(|byte| byte as f32 / 127.5 - 1.0);
    let mut bytes = vec![0u8; numel];
    let mut floats = Vec::with_capacity(numel * clips.len());
    for clip in &clips {
        clip.video.copy_data(&mut bytes, numel);
        floats.extend(bytes.iter().map(|&byte| table[usize::from(byte)]));
    }
    let size: Vec<i64> = std::iter::once(clips.len() as i64).chain(shape).collect();
    let classes: Option<Vec<i64>> = clips.iter().map(|clip| clip.class).collect();
    let actions: Option<Vec<&Tensor>> = clips.iter().map(|clip| clip.actions.as_ref()).collect();
    Batch {
        video: Tensor::from_slice(&floats).view(size.as_slice()),
        classes: classes.map(|classes| Tensor::from_slice(&classes)),
        actions: actions.map(|actions| Tensor::stack(&actions, 0)),
        captions: clips.iter().map(|clip| clip.caption.clone()).collect(),
        names: clips.into_iter().map(|clip| clip.name).collect(),
        position,
    }
}
