//! The process: hands its arguments to `swarmfs::run` and its status to the caller.

use std::process::ExitCode;

fn main() -> ExitCode {
    swarmfs::run::main(std::env::args_os())
}
