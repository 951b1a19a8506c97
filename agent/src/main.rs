//! `tailrace`: the node's daemon and command line.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    agent::cli::main()
}
