//! Going into the background: the parent returns when the child has said how its start went, and repeats it.
//!
//! Without the usual harness: a process that has threads cannot fork, which is one of the things tried.

use std::io::Read;
use std::process::{Command, Stdio};

use swarmfs::fuse::{Role, daemonize};

const ROLE: &str = "SWARMFS_TEST_ROLE";

fn main() {
    match std::env::var(ROLE) {
        Ok(role) => play(&role),
        Err(_) => {
            the_parent_returns_when_the_child_is_ready_and_the_child_goes_on();
            the_parent_repeats_why_the_start_failed();
            a_child_that_dies_without_a_word_is_reported();
            a_process_with_threads_does_not_fork();
            in_the_foreground_nobody_forks();
            println!("5 tests passed");
        }
    }
}

fn the_parent_returns_when_the_child_is_ready_and_the_child_goes_on() {
    // Standard input is the child's reason to go on: it ends when this end is closed.
    let mut parent = start("ready");
    assert_eq!(parent.wait().unwrap().code(), Some(0));
    let mut said = String::new();
    parent.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "", "its streams are closed, or this would wait for the child");
}

fn the_parent_repeats_why_the_start_failed() {
    let output = start("failed").wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(32));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "no origin\n");
}

fn a_child_that_dies_without_a_word_is_reported() {
    let output = start("dies").wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("exit status 7"), "{said}");
    let output = start("killed").wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("signal 9"), "{said}");
}

fn a_process_with_threads_does_not_fork() {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || stopped.recv());
    assert!(daemonize(false).is_err());
    drop(stop);
    let _ = thread.join();
}

fn in_the_foreground_nobody_forks() {
    match daemonize(true).unwrap() {
        Role::Child(readiness) => {
            assert!(readiness.is_foreground());
            readiness.ready().unwrap();
        }
        Role::Parent(_) => panic!("it forked"),
    }
}

fn start(role: &str) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .env(ROLE, role)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn play(role: &str) {
    let readiness = match daemonize(false).unwrap() {
        Role::Parent(outcome) => {
            if !outcome.message.is_empty() {
                eprintln!("{}", outcome.message);
            }
            std::process::exit(outcome.status.into());
        }
        Role::Child(readiness) => readiness,
    };
    match role {
        "ready" => {
            readiness.ready().unwrap();
            // The session it came from may have no number here: its leader can live outside this PID namespace.
            let own = rustix::process::getpid();
            assert_eq!(rustix::process::getsid(None).unwrap(), own, "it left the session for one of its own");
            assert_eq!(std::env::current_dir().unwrap(), std::path::Path::new("/"));
        }
        "failed" => {
            let outcome = readiness.failed(32, "no origin");
            assert_eq!(outcome.status, 32);
        }
        "dies" => std::process::exit(7),
        "killed" => rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap(),
        other => panic!("no role {other:?}"),
    }
}
