# The usual targets. Everything else is cargo's.

PREFIX = /usr/local
# mount(8) looks for its helpers here and nowhere else, whatever the prefix.
SBINDIR = /sbin
UNITDIR = $(PREFIX)/lib/systemd/system
DIR =
ROWS =
# Where cargo puts what it builds, and below that TARGET for another machine, `make TARGET=aarch64-unknown-linux-gnu`.
CARGO_TARGET_DIR ?= target
TARGET =
RUNNABLE = $(if $(TARGET),$(CARGO_TARGET_DIR)/release,$(BUILT))
BUILT = $(CARGO_TARGET_DIR)/$(if $(TARGET),$(TARGET)/)release
STATIC = $(shell uname -m)-unknown-linux-musl

# Hosts in namespaces need root, or a user namespace in which one is root.
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || { unshare -Ur true 2>/dev/null && echo unshare -Ur --; })

all:
	cargo build --release --bin swarmfs $(if $(TARGET),--target $(TARGET))

# One file that runs on any Linux of this machine's kind. Wants `rustup target add x86_64-unknown-linux-musl`, or that of
# another kind.
# What is C calls no C library that differs, so the usual compiler does; without a word cargo looks for musl-gcc.
static: export CC_$(subst -,_,$(STATIC)) = $(CC)
static:
	$(MAKE) all TARGET=$(STATIC)
	@echo $(CARGO_TARGET_DIR)/$(STATIC)/release/swarmfs

# For other machines. Each wants `rustup target add` for it and, to link, Debian's gcc-arm-linux-gnueabihf or
# gcc-aarch64-linux-gnu with the C library that comes along (libc6-dev-armhf-cross, libc6-dev-arm64-cross).
armv7: export CARGO_TARGET_ARMV7_UNKNOWN_LINUX_GNUEABIHF_LINKER = arm-linux-gnueabihf-gcc
armv7: export CC_armv7_unknown_linux_gnueabihf = arm-linux-gnueabihf-gcc
armv7:
	$(MAKE) all TARGET=armv7-unknown-linux-gnueabihf

aarch64: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER = aarch64-linux-gnu-gcc
aarch64: export CC_aarch64_unknown_linux_gnu = aarch64-linux-gnu-gcc
aarch64:
	$(MAKE) all TARGET=aarch64-unknown-linux-gnu

# Serves an image and a tree from one host to three others, all of them on this machine. DIR=... serves your own.
demo:
	.ci/need demo
	cargo build --release --bin swarmfs --example demo
	$(AS_ROOT) $(CARGO_TARGET_DIR)/release/examples/demo "$(DIR)"

test:
	.ci/need test
	$(AS_ROOT) cargo test --no-fail-fast

# Eight nodes in unrest for twenty minutes. The short form is one of the tests.
soak:
	.ci/need test
	SWARMFS_SOAK=1200 $(AS_ROOT) cargo test --test soak -- --nocapture

# Figures on a network, beside a chain of nc and tee. ROWS="8 tar" runs those alone.
bench:
	.ci/need bench
	$(AS_ROOT) cargo bench --bench network -- $(ROWS)

# By a program that runs here, whatever machine the installed one is for.
completions:
	$(if $(TARGET),cargo build --release --bin swarmfs)
	mkdir -p target/completions
	$(RUNNABLE)/swarmfs completions bash > target/completions/swarmfs.bash
	$(RUNNABLE)/swarmfs completions zsh > target/completions/_swarmfs
	$(RUNNABLE)/swarmfs completions fish > target/completions/swarmfs.fish

# Needs `cargo install cargo-deb`. What goes where is in Cargo.toml.
deb: all completions
	mkdir -p target/links
	ln -sf ../bin/swarmfs target/links/mount.swarmfs
	ln -sf ../bin/swarmfs target/links/mount.fuse.swarmfs
	ln -sf swarmfs target/links/xcat
	cargo deb --no-build --strip $(if $(TARGET),--target $(TARGET))

install: all completions
	install -D -m 755 $(BUILT)/swarmfs "$(DESTDIR)$(PREFIX)/bin/swarmfs"
	install -d "$(DESTDIR)$(SBINDIR)"
	ln -sf "$(PREFIX)/bin/swarmfs" "$(DESTDIR)$(SBINDIR)/mount.swarmfs"
	ln -sf "$(PREFIX)/bin/swarmfs" "$(DESTDIR)$(SBINDIR)/mount.fuse.swarmfs"
	ln -sf swarmfs "$(DESTDIR)$(PREFIX)/bin/xcat"
	install -D -m 644 man/swarmfs.1 "$(DESTDIR)$(PREFIX)/share/man/man1/swarmfs.1"
	install -D -m 644 man/swarmfs.conf.5 "$(DESTDIR)$(PREFIX)/share/man/man5/swarmfs.conf.5"
	install -D -m 644 man/swarmfs.7 "$(DESTDIR)$(PREFIX)/share/man/man7/swarmfs.7"
	install -D -m 644 man/mount.swarmfs.8 "$(DESTDIR)$(PREFIX)/share/man/man8/mount.swarmfs.8"
	install -d "$(DESTDIR)$(UNITDIR)"
	sed 's|/usr/bin/|$(PREFIX)/bin/|' mount/swarmfs-serve@.service > "$(DESTDIR)$(UNITDIR)/swarmfs-serve@.service"
	install -d "$(DESTDIR)$(PREFIX)/share/doc/swarmfs/examples"
	install -m 644 $(EXAMPLES) "$(DESTDIR)$(PREFIX)/share/doc/swarmfs/examples"
	install -m 644 README.md "$(DESTDIR)$(PREFIX)/share/doc/swarmfs"
	install -D -m 644 target/completions/swarmfs.bash "$(DESTDIR)$(PREFIX)/share/bash-completion/completions/swarmfs"
	install -D -m 644 target/completions/_swarmfs "$(DESTDIR)$(PREFIX)/share/zsh/vendor-completions/_swarmfs"
	install -D -m 644 target/completions/swarmfs.fish "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/swarmfs.fish"

# What an administrator copies; the service file is installed where it works.
EXAMPLES = $(filter-out mount/debian mount/mount.swarmfs mount/swarmfs-serve@.service,$(wildcard mount/*))

uninstall:
	rm -f "$(DESTDIR)$(SBINDIR)/mount.swarmfs" "$(DESTDIR)$(SBINDIR)/mount.fuse.swarmfs" \
		"$(DESTDIR)$(UNITDIR)/swarmfs-serve@.service"
	cd "$(DESTDIR)$(PREFIX)" && rm -rf bin/swarmfs bin/xcat share/man/man1/swarmfs.1 share/man/man5/swarmfs.conf.5 \
		share/man/man7/swarmfs.7 share/man/man8/mount.swarmfs.8 share/doc/swarmfs \
		share/bash-completion/completions/swarmfs share/zsh/vendor-completions/_swarmfs \
		share/fish/vendor_completions.d/swarmfs.fish

clean:
	cargo clean

.PHONY: all static armv7 aarch64 demo test soak bench install uninstall completions deb clean
