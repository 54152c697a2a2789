# The usual targets. Everything else is cargo's.

PREFIX = /usr/local
DIR =
ROWS =

# Hosts in namespaces need root, or a user namespace in which one is root.
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || { unshare -Ur true 2>/dev/null && echo unshare -Ur --; })

all:
	cargo build --release --bin swarmfs

# Serves an image and a tree from one host to three others, all of them on this machine. DIR=... serves your own.
demo:
	.ci/need demo
	cargo build --release --bin swarmfs --example demo
	$(AS_ROOT) target/release/examples/demo "$(DIR)"

test:
	.ci/need test
	$(AS_ROOT) cargo test --no-fail-fast

# Figures on a network, beside a chain of nc and tee. ROWS="8 tar" runs those alone.
bench:
	.ci/need bench
	$(AS_ROOT) cargo bench --bench network -- $(ROWS)

install: all
	install -D -m 755 target/release/swarmfs "$(DESTDIR)$(PREFIX)/bin/swarmfs"
	install -D -m 644 man/swarmfs.1 "$(DESTDIR)$(PREFIX)/share/man/man1/swarmfs.1"

clean:
	cargo clean

.PHONY: all demo test bench install clean
