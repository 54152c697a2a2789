//! The tree as data: rows, pages, and how they are built, refused and looked up.

/// A parsed page.
pub struct Page {}
