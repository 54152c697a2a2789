//! Where in the catalogue each object is named, kept from one version of the tree to the next.
//!
//! A leaf has a number for as long as it is a page of the newest catalogue, and an object has the number of the first
//! leaf that names it: a change costs the objects of the leaves that changed, 20 bytes are kept for each.

use std::collections::{HashMap, HashSet};

use crate::catalogue::{Page, PageBytes, leaves};
use crate::chunk::ObjectId;
use crate::wire::head::PageHash;

#[derive(Default)]
pub(super) struct Objects {
    leaves: HashMap<PageHash, u32>,
    hashes: HashMap<u32, PageHash>,
    objects: HashMap<ObjectId, u32>,
    last: u32,
}

impl Objects {
    /// The leaf whose rows name an object.
    pub fn leaf(&self, object: &ObjectId) -> Option<PageHash> {
        self.hashes.get(self.objects.get(object)?).copied()
    }

    pub fn contains(&self, object: &ObjectId) -> bool {
        self.objects.contains_key(object)
    }

    /// Goes on to another catalogue. `before` has the pages of the one until now.
    pub fn follow(&mut self, before: &PageBytes, root: PageHash, pages: &PageBytes) {
        let now = leaves(root, pages);
        let stay: HashSet<&PageHash> = now.iter().collect();
        let gone: Vec<PageHash> = self.leaves.keys().filter(|leaf| !stay.contains(leaf)).copied().collect();
        for leaf in gone {
            let number = self.leaves.remove(&leaf).expect("it was found there just now");
            self.hashes.remove(&number);
            for object in parse(before, &leaf).objects() {
                if self.objects.get(&object) == Some(&number) {
                    self.objects.remove(&object);
                }
            }
        }
        for leaf in now {
            if self.leaves.contains_key(&leaf) {
                continue;
            }
            // In the order of the catalogue, so that of an object's rows the first one counts.
            self.last = self.last.wrapping_add(1);
            self.leaves.insert(leaf, self.last);
            self.hashes.insert(self.last, leaf);
            for object in parse(pages, &leaf).objects() {
                self.objects.entry(object).or_insert(self.last);
            }
        }
    }
}

fn parse(pages: &PageBytes, leaf: &PageHash) -> Page {
    Page::parse(pages[leaf].clone()).expect("pages built here are pages")
}
