#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| swarmfs_fuzz::secret::sealed(data));
