//! Properties of the masked generators.

#[path = "maskgit/model.rs"]
mod model;
#[path = "maskgit/schedules.rs"]
mod schedules;
