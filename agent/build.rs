//! How the programs are linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The addresses that the loader puts in, 24 bytes for each as they are, are a megabyte that stays in memory. A
    // linker that does not know the option ignores it; glibc knows the format from 2.36 on (Debian 12), musl from 1.2.4.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
