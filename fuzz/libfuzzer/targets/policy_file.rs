//! See `fuzz::policy::policy_file`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::policy::policy_file(data));
