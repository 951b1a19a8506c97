//! Virtual machines for the tests that need a kernel of their own choosing.
//!
//! ```text
//! Debian kernel + initramfs { busybox, ip, nft, iperf3, ping, daemons, test binaries, /init }
//!      └─► qemu (emulated: no KVM needed) ─► serial console ─► lines, parsed by `test`
//! ```

mod initramfs;
mod qemu;

use std::path::PathBuf;

use anyhow::{Result, bail};

pub(crate) use initramfs::Executable;

use crate::setup::Kernel;

/// First line of our init: the kernel has booted.
const BOOTED: &str = "=== kernel ";
/// Printed before each test binary, with its name.
pub(crate) const SUITE: &str = "=== suite ";
/// Printed after each test binary, with its name and exit status.
pub(crate) const EXIT: &str = "=== exit ";
/// Last line of our init.
const DONE: &str = "=== done";

/// What runs inside.
#[derive(Debug)]
pub(crate) struct Guest {
    /// Test binaries, run one after the other.
    pub(crate) tests: Vec<Executable>,
    /// Folder of the daemons.
    pub(crate) daemons: PathBuf,
    /// Only tests whose name holds this text.
    pub(crate) filter: Option<String>,
    /// Further environment of the tests.
    pub(crate) environment: Vec<(String, String)>,
}

/// Boots `kernel`, runs the guest's tests and returns the console, line by line.
///
/// A boot that prints nothing is tried once more: it happens about once in a hundred.
///
/// # Errors
///
/// When the guest cannot be made, does not boot or does not finish.
pub(crate) fn run(kernel: &Kernel, guest: &Guest) -> Result<Vec<String>> {
    let folder = testnet::Folder::new("vm")?;
    let archive = initramfs::build(kernel, guest, folder.path())?;
    for _attempt in 0..2 {
        let console = qemu::boot(kernel, &archive)?;
        if console.iter().any(|line| line.starts_with(DONE)) {
            return Ok(console);
        }
        if console.iter().any(|line| line.starts_with(BOOTED)) {
            let tail = console[console.len().saturating_sub(60)..].join("\n");
            bail!("the VM ended before its tests did; its last lines:\n{tail}");
        }
        println!("The VM printed nothing; once more");
    }
    bail!("kernel {} did not boot", kernel.version)
}
