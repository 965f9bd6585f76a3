//! The training loop: optimisers, schedules, EMA, checkpoints with exact resume, logs.
