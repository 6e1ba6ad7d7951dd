//! The binary `fwatchdog`: the library's watchdog without a handler of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    updraft_watchdog::start(None)
}
