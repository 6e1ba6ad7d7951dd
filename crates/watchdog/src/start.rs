//! What a program that is a watchdog does first: flags, settings, the log and the runtime.
//!
//! Everything after that is `run`'s.

use std::process::ExitCode;

use crate::config::Config;
use crate::inproc::Handler;
use crate::log::{Log, LogFormat};
use crate::run::{lock_file_exists, run, version_line};

/// Is a watchdog with the arguments and the environment of this process, until it is told to end;
/// the result is the exit code. With a handler, `mode=inproc` has it answer the calls.
pub fn start(handler: Option<Handler>) -> ExitCode {
    if let Some(argument) = std::env::args().nth(1) {
        match argument.as_str() {
            "-version" | "--version" => {
                return say(&mut std::io::stdout(), &version_line(), ExitCode::SUCCESS);
            }
            "-run-healthcheck" | "--run-healthcheck" => {
                if lock_file_exists(variable("TMPDIR")) {
                    return ExitCode::SUCCESS;
                }
                let text = "unable to find lock file.";
                return say(&mut std::io::stderr(), text, ExitCode::FAILURE);
            }
            unknown => {
                let text = format!(
                    "unknown flag `{unknown}`\nusage: fwatchdog [-version | -run-healthcheck]; all settings are environment variables"
                );
                return say(&mut std::io::stderr(), &text, ExitCode::from(2));
            }
        }
    }
    // A name that is no format's is refused together with the other settings.
    let format = variable("log_format").and_then(|name| LogFormat::named(&name));
    let Ok(log) = Log::start(format.unwrap_or(LogFormat::Text)) else {
        let text = "cannot start a thread: raise the limit of processes of this container";
        return say(&mut std::io::stderr(), text, ExitCode::FAILURE);
    };
    let code = run_to_the_end(handler, &log);
    log.close();
    code
}

fn run_to_the_end(handler: Option<Handler>, log: &Log) -> ExitCode {
    let config = match Config::from_lookup(variable) {
        Ok(config) => config,
        Err(error) => {
            log.line(format_args!("{error}"));
            return ExitCode::FAILURE;
        }
    };
    // One thread: a function container has a fraction of a core, and hand-overs cost more than
    // they bring.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(run(config, handler, log.clone()));
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            log.line(format_args!("cannot start: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

fn say(to: &mut dyn std::io::Write, text: &str, code: ExitCode) -> ExitCode {
    // There is nobody left to tell when this fails.
    let _closed = writeln!(to, "{text}");
    code
}
