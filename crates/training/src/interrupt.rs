//! Ctrl-C and SIGTERM: the first asks the loop to save and stop, the second ends the process.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, Once};

/// How often the running loop was asked to stop.
static REQUESTS: AtomicUsize = AtomicUsize::new(0);
/// Whether there is a loop to be asked.
static TRAINING: AtomicBool = AtomicBool::new(false);
/// One loop at a time listens: a signal belongs to the process.
static TURN: Mutex<()> = Mutex::new(());

/// The exit status of a process that was interrupted (128 + SIGINT).
const INTERRUPTED: i32 = 130;

/// Asks a running [`Trainer::train`](crate::Trainer::train) to save a checkpoint and stop, as Ctrl-C does. For
/// applications with a signal handler of their own; elsewhere this crate's handler calls it.
pub fn request_stop() {
    REQUESTS.fetch_add(1, Ordering::SeqCst);
}

/// Listens from its making to its drop. Outside, a signal ends the process as it would have without this crate.
pub(crate) struct Listening<'a> {
    _turn: std::sync::MutexGuard<'a, ()>,
}

impl Listening<'_> {
    pub fn start() -> Self {
        static HANDLER: Once = Once::new();
        let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        REQUESTS.store(0, Ordering::SeqCst);
        TRAINING.store(true, Ordering::SeqCst);
        HANDLER.call_once(|| {
            let handler = || {
                if !TRAINING.load(Ordering::SeqCst) || REQUESTS.load(Ordering::SeqCst) > 0 {
                    std::process::exit(INTERRUPTED);
                }
                request_stop();
                eprintln!("stopping after this step; press Ctrl-C again to stop at once, without saving");
            };
            if let Err(error) = ctrlc::set_handler(handler) {
                tracing::warn!("Ctrl-C will not save a checkpoint: {error}");
            }
        });
        Self { _turn: turn }
    }

    pub fn stop_requested(&self) -> bool {
        REQUESTS.load(Ordering::SeqCst) > 0
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        TRAINING.store(false, Ordering::SeqCst);
    }
}
