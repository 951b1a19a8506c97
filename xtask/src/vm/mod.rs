//! Virtual machines for tests and benches that need a kernel of their own choosing.
//!
//! ```text
//! Debian kernel + initramfs { busybox, ip, nft, iperf3, ping, daemons, our binaries, /init }
//!      └─► qemu (emulated: no KVM needed) ─► serial console ─► lines, parsed by `test` and `bench`
//! ```

mod initramfs;
mod qemu;

use std::path::PathBuf;

use anyhow::{Result, bail};

pub(crate) use initramfs::Executable;

use crate::setup::Kernel;

/// First line of our init: the kernel has booted.
const BOOTED: &str = "=== kernel ";
/// Printed before each step, with its name.
pub(crate) const SUITE: &str = "=== suite ";
/// Printed after each step, with its name and exit status.
pub(crate) const EXIT: &str = "=== exit ";
/// Last line of our init.
const DONE: &str = "=== done";

/// What runs inside.
#[derive(Debug)]
pub(crate) struct Guest {
    /// Run one after the other.
    pub(crate) steps: Vec<Step>,
    /// Folder of the daemons, if they are needed.
    pub(crate) daemons: Option<PathBuf>,
    /// Further programs, found by their name.
    pub(crate) programs: Vec<Executable>,
    /// Further environment of the steps.
    pub(crate) environment: Vec<(String, String)>,
    /// What time is inside.
    pub(crate) clock: Clock,
}

/// A program of ours and how it is called.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// The program.
    pub(crate) program: Executable,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
}

/// What time is inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// The host's; two processors, each as fast as the host emulates it.
    Host,
    /// 4 ns an instruction, whatever the host does meanwhile; one processor.
    Instructions,
}

/// Boots `kernel`, runs the guest's steps and returns the console, line by line.
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
        let console = qemu::boot(kernel, &archive, guest.clock)?;
        if console.iter().any(|line| line.starts_with(DONE)) {
            return Ok(console);
        }
        if console.iter().any(|line| line.starts_with(BOOTED)) {
            let tail = console[console.len().saturating_sub(60)..].join("\n");
            bail!("the VM ended before its programs did; its last lines:\n{tail}");
        }
        eprintln!("The VM printed nothing; once more");
    }
    bail!("kernel {} did not boot", kernel.version)
}
