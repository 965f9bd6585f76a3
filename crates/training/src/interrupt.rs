//! Ctrl-C and SIGTERM: the first asks the loop to save and stop, the second ends the process.

use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How often the running loops were asked to stop.
static REQUESTS: AtomicUsize = AtomicUsize::new(0);
/// How many loops there are to be asked: an evaluation may well train a probe.
static LISTENING: AtomicUsize = AtomicUsize::new(0);

/// The exit status of a process that was interrupted (128 + SIGINT).
const INTERRUPTED: i32 = 130;

/// Asks a running [`Trainer::train`](crate::Trainer::train) to save a checkpoint and stop, as Ctrl-C does. For
/// applications with a signal handler of their own; elsewhere this crate's handler calls it.
pub fn request_stop() {
    REQUESTS.fetch_add(1, Ordering::SeqCst);
}

/// Listens from its making to its drop. Outside, a signal ends the process as it would have without this crate.
pub(crate) struct Listening(());

impl Listening {
    pub fn start() -> Self {
        static HANDLER: Once = Once::new();
        if LISTENING.fetch_add(1, Ordering::SeqCst) == 0 {
            REQUESTS.store(0, Ordering::SeqCst);
        }
        HANDLER.call_once(|| {
            let handler = || {
                if LISTENING.load(Ordering::SeqCst) == 0 || REQUESTS.load(Ordering::SeqCst) > 0 {
                    torch_ext::exit_now(INTERRUPTED);
                }
                request_stop();
                eprintln!("stopping after this step; press Ctrl-C again to stop at once, without saving");
            };
            if let Err(error) = ctrlc::set_handler(handler) {
                tracing::warn!("Ctrl-C will not save a checkpoint: {error}");
            }
        });
        Self(())
    }

    pub fn stop_requested(&self) -> bool {
        REQUESTS.load(Ordering::SeqCst) > 0
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        LISTENING.fetch_sub(1, Ordering::SeqCst);
    }
}
