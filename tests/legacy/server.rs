//! An original's server.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::{CHUNK, Life, header, hear, next, send};

/// Transfers at once.
const MOST: usize = 11;

pub struct Server {
    life: Arc<Life>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves a directory in the network that the calling thread is in.
    pub fn start(root: &Path) -> Server {
        let (life, root, socket) = (Life::new(), root.to_owned(), hear());
        let shared = life.clone();
        let thread = std::thread::spawn(move || {
            let busy: Arc<Mutex<BTreeSet<Ipv4Addr>>> = Arc::default();
            while !shared.has_ended() {
                let Some((datagram, from)) = next(&socket, &shared) else { continue };
                let Some((request, body)) = look_up(&root, &datagram) else { continue };
                let mut addresses = busy.lock().unwrap();
                if addresses.len() >= MOST || !addresses.insert(from) {
                    continue;
                }
                drop(addresses);
                let busy = busy.clone();
                std::thread::spawn(move || {
                    // Whoever went away asks again.
                    let _ = send(from, &header(&request, &body), &body);
                    busy.lock().unwrap().remove(&from);
                });
            }
        });
        Server { life, thread: Some(thread) }
    }

    /// Ends it; what killed it before, if anything did.
    pub fn stop(mut self) -> Option<String> {
        self.life.end();
        self.thread.take().unwrap().join().unwrap();
        self.life.death()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.life.end();
    }
}

/// What was asked, as it is echoed, and the chunk. It reads before it knows whether the asker may have it.
fn look_up(root: &Path, datagram: &[u8]) -> Option<(String, Vec<u8>)> {
    let text = std::str::from_utf8(datagram).ok()?.trim_end_matches('\0');
    let mut fields = text.split('@');
    let (path, number) = (fields.next()?, fields.next()?);
    let number: u64 = number.trim().trim_start_matches('+').parse().ok()?;
    let mut file: PathBuf = root.to_owned();
    file.extend(path.split('/').filter(|name| !name.is_empty()));
    if !file.is_file() {
        return None;
    }
    let file = File::open(file).ok()?;
    let mut body = vec![0; CHUNK];
    let mut len = 0;
    while len < CHUNK {
        match file.read_at(&mut body[len..], number * CHUNK as u64 + len as u64).ok()? {
            0 => break,
            count => len += count,
        }
    }
    body.truncate(len);
    Some((format!("{path}@{number}"), body))
}
