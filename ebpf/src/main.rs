//! The eBPF programs, built by `cargo xtask build-ebpf`; on the host a stub.
//!
//! Licensed MIT or GPL-2.0, apart from the rest of the repository: some kernel helpers are open to
//! GPL-compatible programs only.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_arch = "bpf")]
mod admitted;
#[cfg(target_arch = "bpf")]
mod events;
#[cfg(target_arch = "bpf")]
mod filter;
#[cfg(target_arch = "bpf")]
mod forward;
#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod overlay;
#[cfg(target_arch = "bpf")]
mod pin;
#[cfg(target_arch = "bpf")]
mod runtime;
#[cfg(target_arch = "bpf")]
mod shield;
#[cfg(target_arch = "bpf")]
mod steer;
#[cfg(target_arch = "bpf")]
mod tables;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("the eBPF programs are built by `cargo xtask build-ebpf`");
}
