//! The tree as data: rows, the pages they are cut into, and how those are built, refused and looked up.
//!
//! A catalogue is every row of a tree in one order, cut into pages of at most a block; upper pages name lower ones by
//! hash and count the rows, bytes and chunks below, up to one root page that the tree head names. Where pages are cut
//! follows from the names alone, so equal trees have equal pages, and one more file changes the few pages on its way.
//!
//! Nothing here reads a disk or waits for a page: a look-up that lacks one says which, and is asked again when it is
//! here. The invariant: a `Page` holds only rows that a tree can have, in order, so whoever sent it, looking something
//! up in it ends and never panics.
//!
//! The order: a directory's rows lie together, its non-directories first, then its directories, each by the bytes of
//! their names; after them come the rows of its subdirectories, one after the other, each with all that is below it.
//! The root's own row is the very first. Whoever walks in readdir's order (`tar`, `find`) thus only moves forward.

mod build;
mod page;
mod revise;
mod row;
mod view;

pub use build::{Builder, Built, NotATree, build};
pub use page::{MAX_PAGE, Page};
pub use revise::{PageBytes, Revision, leaves, revise};
pub use row::{Attributes, Kind, MAX_DIR, MAX_NAME, MAX_TARGET, MAX_XATTRS, NotARow, Row, Time, Xattr};
pub use view::{Entry, Lookup, Pages, View};
