//! What people and scripts read: lines of `ls`, tables of `status`.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::control::{Entry, Role, Status};
use crate::settings::quantity::show_size;

/// One line of `ls`, the newline included. On a terminal, bytes that would move its cursor or are no text are shown as
/// `?`; elsewhere a name is written as it is.
pub fn entry(entry: &Entry, long: bool, terminal: bool) -> Vec<u8> {
    let mut line = Vec::new();
    if long {
        let size = match entry.mode & 0o170000 {
            0o020000 | 0o060000 => {
                format!("{}, {}", rustix::fs::major(entry.rdev), rustix::fs::minor(entry.rdev))
            }
            _ => entry.size.to_string(),
        };
        let time = local_time(entry.mtime_s);
        let Entry { nlink, uid, gid, .. } = entry;
        line = format!("{} {nlink:>3} {uid:>5} {gid:>5} {size:>12} {time} ", mode(entry.mode)).into_bytes();
    }
    put_name(&entry.name, terminal, &mut line);
    if let Some(target) = entry.target.as_ref().filter(|_| long) {
        line.extend_from_slice(b" -> ");
        put_name(target.as_os_str(), terminal, &mut line);
    }
    line.push(b'\n');
    line
}

fn put_name(name: &OsStr, terminal: bool, line: &mut Vec<u8>) {
    if !terminal {
        return line.extend_from_slice(name.as_bytes());
    }
    for part in name.as_bytes().utf8_chunks() {
        let shown = part.valid().chars().map(|c| if c.is_control() { '?' } else { c });
        line.extend_from_slice(shown.collect::<String>().as_bytes());
        line.extend(part.invalid().iter().map(|_| b'?'));
    }
}

/// Ten characters as `ls -l` writes them.
fn mode(mode: u32) -> String {
    let kind = match mode & 0o170000 {
        0o140000 => 's',
        0o120000 => 'l',
        0o100000 => '-',
        0o060000 => 'b',
        0o040000 => 'd',
        0o020000 => 'c',
        0o010000 => 'p',
        _ => '?',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// The time of this host's zone as `ls --time-style=long-iso` writes it; seconds where the year is beyond counting.
#[allow(unsafe_code)]
pub fn local_time(seconds: i64) -> String {
    // Of 32 bits on some machines.
    let Some(time) = libc::time_t::try_from(seconds).ok() else { return seconds.to_string() };
    // SAFETY: all-zero bytes are a valid `tm`, and both pointers are of this function's own variables. The zone is read
    // from the environment, which this program never changes.
    let (parts, known) = unsafe {
        let mut parts: libc::tm = std::mem::zeroed();
        let known = !libc::localtime_r(&time, &mut parts).is_null();
        (parts, known)
    };
    if !known {
        return seconds.to_string();
    }
    let (year, month) = (i64::from(parts.tm_year) + 1900, parts.tm_mon + 1);
    format!("{year:04}-{month:02}-{:02} {:02}:{:02}", parts.tm_mday, parts.tm_hour, parts.tm_min)
}

pub fn json(statuses: &[Status]) -> String {
    let mut text = serde_json::to_string_pretty(statuses).expect("statuses are numbers, text and lists of them");
    text.push('\n');
    text
}

/// A paragraph for each node.
pub fn table(statuses: &[Status], dir: &Path) -> String {
    if statuses.is_empty() {
        return format!("no node runs on this host (none has a socket in {})\n", dir.display());
    }
    let paragraphs: Vec<String> = statuses.iter().map(paragraph).collect();
    paragraphs.join("\n")
}

/// What a service manager shows of a node.
pub fn line(status: &Status) -> String {
    let Status { bytes, peers, .. } = status;
    let received = bytes.from_origin.saturating_add(bytes.from_peers);
    let (received, sent) = (show_size(received), show_size(bytes.to_peers));
    format!("{}: {} peers, received {received}, sent {sent}", plain(&status.tree), peers.len())
}

fn paragraph(status: &Status) -> String {
    let place = match (status.role, &status.directory, &status.mountpoint) {
        (Role::Origin, Some(directory), _) => format!("origin of {directory}"),
        (Role::Origin, None, _) => "origin".to_owned(),
        (Role::Mount, _, Some(point)) => format!("mounted on {point}"),
        (Role::Mount, _, None) => "being mounted".to_owned(),
        (Role::Stream, ..) => "read by a program".to_owned(),
    };
    if let Some(reason) = &status.waits {
        return format!("{} ({place}, pid {})\n  waits       {}\n", plain(&status.tree), status.pid, plain(reason));
    }
    let bytes = &status.bytes;
    let origins = status.peers.iter().filter(|peer| peer.origin).count();
    let mut text = format!("{} ({place}, pid {}, port {})\n", plain(&status.tree), status.pid, status.port);
    let mut row = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<12}{value}");
    };
    row("key", format!("{}, version {} of the tree", status.key_fingerprint, status.sequence));
    if status.private {
        row("secret", "only nodes with it can join; what they send is encrypted".to_owned());
    }
    row("head", status.head.clone());
    row("cache", {
        let (used, budget) = (show_size(bytes.cache_used), show_size(bytes.cache_budget));
        format!("{used} of {budget}, {} chunks", status.chunks_held)
    });
    row(
        "received",
        format!("{} from the origin, {} from peers", show_size(bytes.from_origin), show_size(bytes.from_peers)),
    );
    row("sent", format!("{} to peers", show_size(bytes.to_peers)));
    row("peers", format!("{}, {origins} of them origins", status.peers.len()));
    if let Some(seconds) = status.origin_away_s {
        row("origin", format!("not heard for {}: reads of what no peer has wait for it", duration(seconds)));
        row("", "(with soft they fail); see that `swarmfs serve` runs and is reached".to_owned());
    }
    if let Some(rival) = &status.rival {
        row("not trusted", format!("{}; if that is the tree's new key,", plain(rival)));
        row("", format!("unmount, `swarmfs key --forget {}`, mount", plain(&status.tree)));
    }
    for peer in &status.peers {
        let what = match (peer.origin, peer.position) {
            (true, _) => "origin".to_owned(),
            (false, Some(position)) => format!("at chunk {position}"),
            (false, None) => "new".to_owned(),
        };
        row("", format!("{:<24}{what}", peer.address));
    }
    for (name, count) in status.counters.iter().filter(|(_, count)| **count > 0) {
        row("", format!("{count} {}", name.replace('_', " ")));
    }
    text
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

/// A tree's name may hold what a terminal would take for an order.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Lines of a list below a message.
pub fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  {line}")).collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    use super::*;
    use crate::control::{Bytes, Peer};

    #[test]
    fn modes_are_written_as_ls_writes_them() {
        for (bits, text) in [
            (0o100644, "-rw-r--r--"),
            (0o040755, "drwxr-xr-x"),
            (0o120777, "lrwxrwxrwx"),
            (0o104755, "-rwsr-xr-x"),
            (0o104644, "-rwSr--r--"),
            (0o102711, "-rwx--s--x"),
            (0o041777, "drwxrwxrwt"),
            (0o041666, "drw-rw-rwT"),
            (0o020600, "crw-------"),
            (0o060660, "brw-rw----"),
            (0o010600, "prw-------"),
            (0o140700, "srwx------"),
        ] {
            assert_eq!(mode(bits), text);
        }
    }

    #[test]
    fn names_are_raw_in_a_pipe_and_harmless_on_a_terminal() {
        let file = Entry {
            name: OsString::from_vec(b"a\xff\n\x1b[2Jb".to_vec()),
            mode: 0o120777,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 3,
            mtime_s: 0,
            rdev: 0,
            target: Some(PathBuf::from("x\ty")),
        };
        assert_eq!(entry(&file, false, false), b"a\xff\n\x1b[2Jb\n");
        assert_eq!(entry(&file, false, true), b"a???[2Jb\n");
        let long = String::from_utf8(entry(&file, true, true)).unwrap();
        assert!(long.starts_with("lrwxrwxrwx   1     0     0            3 19"), "{long}");
        assert!(long.ends_with(" a???[2Jb -> x?y\n"), "{long}");
    }

    #[test]
    fn devices_show_their_numbers_instead_of_a_size() {
        let device = Entry {
            name: "sda1".into(),
            mode: 0o060660,
            nlink: 1,
            uid: 0,
            gid: 6,
            size: 0,
            mtime_s: i64::MAX,
            rdev: rustix::fs::makedev(8, 1),
            target: None,
        };
        let line = String::from_utf8(entry(&device, true, false)).unwrap();
        assert!(line.starts_with("brw-rw----   1     0     6         8, 1 "), "{line}");
    }

    #[test]
    fn a_status_is_a_paragraph_of_few_short_lines() {
        let status = Status {
            tree: "images".to_owned(),
            pid: 7,
            port: 19025,
            sequence: 9,
            head: "5a5a".to_owned(),
            key_fingerprint: "0011-2233-4455-6677".to_owned(),
            mountpoint: Some("/mnt".to_owned()),
            peers: vec![
                Peer { address: "10.0.0.1:19024".to_owned(), origin: true, position: None },
                Peer { address: "10.0.0.2:19024".to_owned(), origin: false, position: Some(12) },
            ],
            chunks_held: 3,
            bytes: Bytes {
                cache_used: 48 << 20,
                cache_budget: 64 << 20,
                from_origin: 1 << 30,
                from_peers: 5,
                to_peers: 0,
            },
            counters: [("malformed_datagrams".to_owned(), 2), ("wrong_blocks".to_owned(), 0)].into(),
            ..Status::default()
        };
        assert_eq!(
            table(&[status], Path::new("/run/swarmfs")),
            "images (mounted on /mnt, pid 7, port 19025)\n  \
             key         0011-2233-4455-6677, version 9 of the tree\n  \
             head        5a5a\n  \
             cache       48.0 MiB of 64.0 MiB, 3 chunks\n  \
             received    1.0 GiB from the origin, 5 B from peers\n  \
             sent        0 B to peers\n  \
             peers       2, 1 of them origins\n              \
             10.0.0.1:19024          origin\n              \
             10.0.0.2:19024          at chunk 12\n              \
             2 malformed datagrams\n"
        );
        let status = Status {
            mountpoint: Some("/mnt".to_owned()),
            origin_away_s: Some(150),
            rival: Some("10.0.0.9 with key 0000-1111-2222-3333".to_owned()),
            ..Status::default()
        };
        let shown = table(&[status], Path::new("/run/swarmfs"));
        assert!(shown.contains("origin      not heard for 2 min: reads of what no peer has wait for it\n"), "{shown}");
        assert!(shown.contains("not trusted 10.0.0.9 with key 0000-1111-2222-3333;"), "{shown}");
        assert_eq!(json(&[]), "[]\n");
        let late = Status {
            tree: "images".to_owned(),
            mountpoint: Some("/mnt".to_owned()),
            waits: Some("nobody offers it".to_owned()),
            ..Status::default()
        };
        assert_eq!(
            table(&[late], Path::new("/run")),
            "images (mounted on /mnt, pid 0)\n  waits       nobody offers it\n"
        );
        let status = Status { tree: "a\nREADY=1".to_owned(), ..Status::default() };
        assert_eq!(line(&status), "a?READY=1: 0 peers, received 0 B, sent 0 B");
    }
}
