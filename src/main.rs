//! The program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    swarmfs::run::main(std::env::args_os())
}
