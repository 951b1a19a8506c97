//! Embeds the eBPF object that `cargo xtask build-ebpf` left in `target/ebpf`, as a zstd frame, or nothing, so
//! that the workspace builds and editors work before any set-up.

use std::{env, fs, io, path::Path};

fn main() -> io::Result<()> {
    let manifest_dir = env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?;
    let out_dir = env::var("OUT_DIR").map_err(io::Error::other)?;
    let folder = Path::new(&manifest_dir).join("../../target/ebpf");

    // Cargo takes a missing path for changed and would rebuild this crate for ever; an existing
    // folder it watches with all that it holds. A read-only source tree has nothing to watch.
    if fs::create_dir_all(&folder).is_ok() {
        println!("cargo::rerun-if-changed={}", folder.display());
    }
    println!("cargo::rerun-if-changed=build.rs");

    let object = match fs::read(folder.join("tailrace.o")) {
        Ok(object) if object.is_empty() => object,
        // With its size in the header, so that unpacking takes no more room than it.
        Ok(object) => zstd::bulk::compress(&object, 19)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    fs::write(Path::new(&out_dir).join("tailrace.o.zst"), object)
}
