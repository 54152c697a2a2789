//! The program as scripts see it: what it prints where, and how it exits. No network: nodes are stood in for by control
//! sockets in a directory of the test's own.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::pin::Pin;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use swarmfs::control::server::{Limits, Server};
use swarmfs::control::{Answer, Entry, Failure, Node, Role, Status};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::{mpsc, oneshot};

fn swarmfs<S: AsRef<OsStr>>(sockets: &Path, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swarmfs"));
    command.args(arguments).env("RUNTIME_DIRECTORY", sockets).env("TZ", "UTC").env_remove("SWARMFS_LOG");
    command
}

fn run(sockets: &Path, line: &str) -> Output {
    swarmfs(sockets, line.split_whitespace()).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A node of the tree `images` with one directory and a few files.
struct Images;

impl Node for Images {
    fn status(&self) -> Status {
        Status {
            pid: 4711,
            role: Role::Mount,
            tree: "images".to_owned(),
            mountpoint: Some("/mnt/images".to_owned()),
            port: 19025,
            ..Status::default()
        }
    }

    fn list<'a>(&'a self, path: &'a Path, entries: mpsc::Sender<Entry>) -> Answer<'a, ()> {
        Box::pin(async move {
            if path != Path::new("boards") {
                return Err(Failure::NotFound);
            }
            let (nlink, uid, gid, size, mtime_s, rdev) = (1, 0, 50, 1 << 20, 86_400, 0);
            let name = OsString::from_vec(b"a\xff".to_vec());
            let file = Entry { name, mode: 0o100644, nlink, uid, gid, size, mtime_s, rdev, target: None };
            let link = Entry { name: "b".into(), mode: 0o120777, target: Some("a".into()), ..file.clone() };
            for entry in [file, link] {
                entries.send(entry).await.map_err(|_| Failure::Stopped)?;
            }
            Ok(())
        })
    }

    fn open<'a>(&'a self, path: &'a Path) -> Answer<'a, Box<dyn AsyncRead + Send + Unpin>> {
        Box::pin(async move {
            let file: Box<dyn AsyncRead + Send + Unpin> = match path.to_str() {
                Some("one") => Box::new(&b"one\n"[..]),
                Some("two") => Box::new(&b"two\n"[..]),
                Some("endless") => Box::new(tokio::io::repeat(b'x')),
                Some("broken") => Box::new(tokio::io::AsyncReadExt::chain(&b"begins"[..], Broken)),
                _ => return Err(Failure::NotFound),
            };
            Ok(file)
        })
    }
}

struct Broken;

impl AsyncRead for Broken {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Err(std::io::Error::other(Failure::Gone)))
    }
}

/// Sockets of this test's own, with a node on one.
struct Host {
    dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    fn with_a_node() -> Host {
        let dir = tempfile::tempdir().expect("a directory");
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let server = {
            let _inside = runtime.enter();
            Server::bind(dir.path(), "images", Limits::default()).expect("a socket")
        };
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = server.run(Arc::new(Images)) => {}
                    _ = stopped => {}
                }
            });
        });
        Host { dir, stop: Some(stop), thread: Some(thread) }
    }

    fn run(&self, line: &str) -> Output {
        run(self.dir.path(), line)
    }

    fn command(&self, line: &str) -> Command {
        swarmfs(self.dir.path(), line.split_whitespace())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[test]
fn wrong_usage_ends_with_1_and_one_message() {
    let dir = tempfile::tempdir().unwrap();
    for (line, expected) in [
        ("", "requires a subcommand"),
        ("frobnicate", "unrecognized subcommand 'frobnicate'"),
        ("mount", "<DIR>"),
        ("serve", "<DIR>"),
        ("cat images:/../etc/passwd", "without '..'"),
        ("ls --cache 1M", "at least 32M"),
        ("ls --key 12", "64 hex digits"),
        ("mount /mnt -o rw", "swarmfs: option rw: a swarmfs mount is read-only"),
        ("mount /mnt -o sotf", "did you mean soft?"),
    ] {
        let output = run(dir.path(), line);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {message}");
        assert!(message.starts_with("swarmfs: ") && message.contains(expected), "{line}: {message}");
        assert!(output.stdout.is_empty(), "{line}");
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    let dir = tempfile::tempdir().unwrap();
    for line in ["--help", "-h", "--version", "mount --help", "status -h"] {
        let output = run(dir.path(), line);
        assert_eq!(output.status.code(), Some(0), "{line}");
        assert!(output.stderr.is_empty() && !output.stdout.is_empty(), "{line}");
    }
}

#[test]
fn a_directory_that_is_not_there_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), "serve /nonexistent/images");
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.starts_with("swarmfs: cannot serve \"/nonexistent/images\": No such file"), "{message}");
}

#[test]
fn a_mount_that_fails_ends_with_2_and_says_why_in_the_foreground_and_in_the_background() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for flag in ["", "-f"] {
        let output = run(dir.path(), &format!("mount images: /nonexistent/mnt {flag}"));
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.starts_with("swarmfs: mount point \"/nonexistent/mnt\" does not exist"), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        let output = run(dir.path(), &format!("mount {} {flag}", file.display()));
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("is not a directory"), "{}", text(&output.stderr));
    }
}

#[test]
fn what_is_not_mounted_cannot_be_unmounted() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &format!("umount {}", dir.path().display()));
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("swarmfs: nothing is mounted on"), "{}", text(&output.stderr));
}

#[test]
fn a_host_without_nodes_has_an_empty_status() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), "status");
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).starts_with("no node runs on this host"));
    assert_eq!(text(&run(dir.path(), "status --json").stdout), "[]\n");
}

#[test]
fn status_shows_each_node_for_people_and_for_scripts() {
    let host = Host::with_a_node();
    // A node that died leaves a socket; it is not shown, and removed.
    let dead = host.dir.path().join("old-1.sock");
    drop(UnixListener::bind(&dead).unwrap());
    let output = host.run("status");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("images (mounted on /mnt/images, pid 4711, port 19025)\n"));
    assert!(!dead.exists());
    let statuses: Vec<Status> = serde_json::from_slice(&host.run("status --json").stdout).unwrap();
    assert_eq!(statuses, [Images.status()]);
}

#[test]
fn a_node_that_does_not_answer_is_named_and_the_others_are_shown() {
    let host = Host::with_a_node();
    let silent = host.dir.path().join("silent-1.sock");
    let _listener = UnixListener::bind(&silent).unwrap();
    let output = host.run("status --json");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("silent-1.sock\": the node does not answer"), "{}", text(&output.stderr));
    let statuses: Vec<Status> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(statuses.len(), 1);
}

#[test]
fn ls_goes_through_this_hosts_node_and_writes_names_as_they_are() {
    let host = Host::with_a_node();
    for path in ["images:/boards", "/boards", "boards/"] {
        let output = host.run(&format!("ls {path}"));
        assert_eq!(output.stdout, b"a\xff\nb\n", "{path}: {}", text(&output.stderr));
        assert_eq!(output.status.code(), Some(0));
    }
    assert_eq!(
        host.run("ls -l images:/boards").stdout,
        b"-rw-r--r--   1     0    50      1048576 1970-01-02 00:00 a\xff\n\
          lrwxrwxrwx   1     0    50      1048576 1970-01-02 00:00 b -> a\n"
    );
    let output = host.run("ls images:/nowhere");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stderr), "swarmfs: images:/nowhere: no such file or directory\n");
}

#[test]
fn cat_writes_what_it_can_and_says_what_it_cannot() {
    let host = Host::with_a_node();
    let output = host.run("cat images:/one images:/missing /two");
    assert_eq!(text(&output.stdout), "one\ntwo\n");
    assert_eq!(text(&output.stderr), "swarmfs: images:/missing: no such file or directory\n");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(host.run("cat one two").status.code(), Some(0));
}

#[test]
fn a_file_that_breaks_off_is_not_a_success() {
    let host = Host::with_a_node();
    let output = host.run("cat broken");
    assert_eq!(text(&output.stdout), "begins");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("swarmfs: broken: the file was changed or removed"));
}

#[test]
fn a_reader_that_goes_away_ends_cat_without_a_word() {
    let host = Host::with_a_node();
    let mut cat = host.command("cat endless").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut some = [0; 1000];
    cat.stdout.take().unwrap().read_exact(&mut some).unwrap();
    let output = cat.wait_with_output().unwrap();
    assert_eq!(some, [b'x'; 1000]);
    assert_eq!(output.status.code(), Some(141), "as a filter that SIGPIPE ended");
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let host = Host::with_a_node();
    for line in ["cat one", "ls boards", "status", "status --json", "--help"] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = host.command(line).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}");
        let message = text(&output.stderr);
        assert!(message.starts_with("swarmfs: cannot write to standard output: No space left"), "{line}: {message}");
    }
}

#[test]
fn a_key_goes_from_one_host_to_another_and_replaces_none_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let key = |state: &str, line: &str| {
        let mut command = swarmfs(dir.path(), ["key"].into_iter().chain(line.split_whitespace()));
        command.current_dir(dir.path()).env("STATE_DIRECTORY", dir.path().join(state)).output().unwrap()
    };
    let printed = text(&key("a", "").stdout);
    assert!(printed.starts_with("key ") && printed.contains("kept in"), "{printed}");
    let wrote = key("a", "--export secret");
    assert!(wrote.status.success() && text(&wrote.stdout).starts_with("wrote the secret key"), "{wrote:?}");
    let public = |state| text(&key(state, "").stdout).lines().next().map(str::to_owned);
    assert_ne!(public("b"), public("a"));
    let refused = key("b", "--import secret");
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("has another origin key") && refused.stdout.is_empty(), "{refused:?}");
    let taken = key("b", "--import secret --force");
    assert!(taken.status.success() && text(&taken.stdout).contains("put aside as"), "{taken:?}");
    assert_eq!(public("b"), public("a"));
    let piped = key("a", "--export -");
    assert_eq!(piped.stdout, std::fs::read(dir.path().join("secret")).unwrap());
    assert!(text(&piped.stderr).contains("this is the secret key"));
}
