//! Files of a tree as streams.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use thiserror::Error;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;

use crate::control::{Entry, Failure};
use crate::driver::Client;

#[derive(Debug, Error)]
#[error("{0}")]
pub struct StreamError(pub Failure);

/// An open file.
pub struct File {}

impl AsyncRead for File {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        unimplemented!()
    }
}

pub async fn open(_client: &Client, _path: &Path) -> Result<File, StreamError> {
    unimplemented!()
}

pub async fn list(_client: &Client, _path: &Path, _entries: mpsc::Sender<Entry>) -> Result<(), StreamError> {
    unimplemented!()
}
