use std::process::ExitCode;

fn main() -> ExitCode {
    swarmfs::run::main(std::env::args_os())
}
