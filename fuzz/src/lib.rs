//! What the fuzz targets do with a fuzzer's bytes: plain functions, so that `tests/corpus.rs` replays the committed
//! corpus with the usual compiler.
//!
//! `cargo +nightly fuzz run -s none NAME` from this directory's parent fuzzes one (`cargo install cargo-fuzz`; there is
//! no unsafe code below the effects for a sanitizer to watch). What it finds in `fuzz/artifacts` is mended and goes to
//! `fuzz/corpus/NAME`. Whatever lies behind a checksum or a signature is reached, too: the targets make both right.

pub mod node;
pub mod parsers;
pub mod secret;

type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Target); 11] = [
    ("datagram", parsers::datagram),
    ("stream", parsers::stream),
    ("page", parsers::page),
    ("header", parsers::header),
    ("head", parsers::head),
    ("config", parsers::config),
    ("options", parsers::options),
    ("node", node::node),
    ("xcat", parsers::xcat),
    ("sealed", secret::sealed),
    ("channel", secret::channel),
];
