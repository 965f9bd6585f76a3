//! The binary `vireo`: parses the command line, runs a verb, and turns an error into one line and an exit code.

use clap::Parser;
use experiments::cli::Cli;

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| if cli.verbose { "debug" } else { "warn" }.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .without_time()
        .with_writer(std::io::stderr)
        .init();
    match experiments::commands::dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            // One line: the context from the outside in, without doubled messages.
            let mut line = String::new();
            for cause in error.chain().map(ToString::to_string) {
                if !line.contains(&cause) {
                    line = if line.is_empty() { cause } else { format!("{line}: {cause}") };
                }
            }
            eprintln!("error: {}", line.split_whitespace().collect::<Vec<_>>().join(" "));
            std::process::ExitCode::FAILURE
        }
    }
}
