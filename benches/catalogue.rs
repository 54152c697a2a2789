//! The catalogue of 100,000 rows: building it, changing one row, parsing a page, finding rows in it.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use swarmfs::catalogue::{Attributes, Builder, Built, Kind, Page, Revision, Row, View, revise};
use swarmfs::chunk::ObjectId;
use swarmfs::wire::head::PageHash;

const ROWS: usize = 100_000;
const IN_A_DIRECTORY: usize = 100;

/// Rows in catalogue order: directories of a hundred files each.
fn rows() -> Vec<Row> {
    let row = |dir: &str, name: String, kind, size| {
        let attributes = Attributes { mode: 0o644, nlink: 1, size, ..Attributes::default() };
        Row::new(dir.as_bytes(), name.into_bytes(), kind, attributes, Vec::new()).expect("a valid row")
    };
    let mut rows = vec![row("", String::new(), Kind::Directory, 0)];
    rows.extend((0..ROWS / IN_A_DIRECTORY).map(|dir| row("", directory(dir), Kind::Directory, 4096)));
    for dir in 0..ROWS / IN_A_DIRECTORY {
        for file in 0..IN_A_DIRECTORY {
            let object = ObjectId([file as u8; 16]);
            rows.push(row(&directory(dir), file_name(file), Kind::File { object }, 5000));
        }
    }
    rows
}

fn directory(number: usize) -> String {
    format!("package-{number:05}")
}

fn file_name(number: usize) -> String {
    format!("source-{number:03}.rs")
}

fn built(rows: &[Row]) -> Built {
    let mut builder = Builder::default();
    for row in rows {
        builder.push(row).expect("rows in order");
    }
    builder.finish().expect("a tree")
}

fn catalogue(c: &mut Criterion) {
    let rows = rows();
    let tree = built(&rows);
    let pages: HashMap<PageHash, Arc<Page>> =
        tree.pages.iter().map(|(hash, bytes)| (*hash, Arc::new(Page::parse(bytes.clone()).expect("a page")))).collect();
    let view = View::new(tree.root, tree.root_level);

    let mut group = c.benchmark_group("catalogue");
    group.throughput(Throughput::Elements(rows.len() as u64)).sample_size(10);
    group.bench_function("build 100k rows", |b| b.iter(|| built(black_box(&rows))));
    let changed = Row::new(
        directory(500).as_bytes(),
        file_name(50).into_bytes(),
        Kind::File { object: ObjectId([255; 16]) },
        Attributes { mode: 0o644, nlink: 1, size: 6000, ..Attributes::default() },
        Vec::new(),
    )
    .expect("a valid row");
    group.throughput(Throughput::Elements(1)).sample_size(20);
    group.bench_function("revise one row of 100k", |b| {
        b.iter(|| {
            let names = [changed.path()].into();
            let revision = Revision { names, rows: vec![changed.clone()], ..Revision::default() };
            revise(tree.root, &tree.pages, black_box(revision)).expect("a tree")
        });
    });
    group.throughput(Throughput::Elements(tree.pages.len() as u64)).sample_size(10);
    group.bench_function("parse all pages", |b| {
        b.iter(|| tree.pages.values().filter(|bytes| Page::parse((*bytes).clone()).is_ok()).count());
    });
    group.throughput(Throughput::Elements(1)).sample_size(100);
    let mut number = 0;
    group.bench_function("row", |b| {
        b.iter(|| {
            number = (number + 7919) % ROWS;
            let (dir, file) = (directory(number / IN_A_DIRECTORY), file_name(number % IN_A_DIRECTORY));
            view.row(&pages, dir.as_bytes(), file.as_bytes()).expect("all pages are here").expect("a row")
        });
    });
    group.bench_function("entries of a directory of 100", |b| {
        b.iter(|| view.entries(&pages, black_box(b"package-00500"), None, 200).expect("all pages are here"));
    });
    group.finish();
}

criterion_group!(benches, catalogue);
criterion_main!(benches);
