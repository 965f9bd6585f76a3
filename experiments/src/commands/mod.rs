//! The verbs, a file each.

mod coding;
mod compare;
mod copy_task;
mod describe;
mod doctor;
mod import;
mod reconstruct;
mod sample;
mod scaling;
mod verify;

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::{Cli, Command};
use crate::{config::RunConfig, pipeline, report};

/// Runs the verb that the command line names.
///
/// # Errors
/// Whatever the verb cannot do, as one line that says what and how to mend it.
pub fn dispatch(cli: Cli) -> Result<ExitCode> {
    if let Some(threads) = cli.threads {
        tch::set_num_threads(threads);
    }
    match cli.command {
        Command::Run(args) => {
            let config = RunConfig::load(&args.config, &args.overrides)?;
            pipeline::run(&config, &args.runs)?;
        }
        Command::Train(args) => {
            let config = RunConfig::load(&args.config, &args.overrides)?;
            pipeline::train(&config, &args.runs)?;
        }
        Command::Reconstruct(args) => reconstruct::reconstruct(&args)?,
        Command::Encode(args) => coding::encode(&args)?,
        Command::Decode(args) => coding::decode(&args)?,
        Command::Eval(args) => pipeline::eval(&args.run, &args.overrides, args.dry_run)?,
        Command::Sample(args) => sample::sample(&args)?,
        Command::CopyTask(args) => copy_task::run(&args)?,
        Command::Scaling(args) => scaling::scaling(&args)?,
        Command::Verify(args) => return verify::verify(&args),
        Command::Import(args) => import::import(&args)?,
        Command::Describe(args) => describe::describe(&args)?,
        Command::Compare { runs } => compare::compare(&runs)?,
        Command::Doctor => return Ok(doctor::doctor()),
        Command::Report { run } => println!("{}", report::write(&run)?.display()),
    }
    Ok(ExitCode::SUCCESS)
}
