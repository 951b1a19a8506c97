//! Why the eBPF programs are not there, in terms an operator can act on.

use std::{error::Error, io, path::PathBuf};

use aya::{
    maps::MapError,
    programs::{ProgramError, tc::TcError},
};

use crate::filter::TooLarge;

/// Why loading, attaching, filling or reading the programs failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataplaneError {
    /// This binary was built without the eBPF object.
    #[error(
        "this binary was built without its eBPF object: run `cargo xtask build-ebpf`, then build again"
    )]
    EmptyObject,
    /// The kernel, a container or a security module refused BPF.
    #[error(
        "{operation}: the kernel permits no BPF here (it takes CAP_BPF, CAP_PERFMON and \
         CAP_NET_ADMIN, or root outside a container)"
    )]
    NotPermitted {
        /// What was being done.
        operation: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The folder for pins is not on a BPF file system.
    #[error(
        "{} is not on a BPF file system: mount one with `mount -t bpf bpf {}`",
        path.display(), path.display()
    )]
    NoBpffs {
        /// The folder.
        path: PathBuf,
    },
    /// No BPF file system is mounted and none could be.
    #[error("no BPF file system: mounting one at {} failed", path.display())]
    Mount {
        /// Where it was to be mounted.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The interface is absent in this network namespace.
    #[error("interface {0} does not exist in this network namespace")]
    NoInterface(String),
    /// The interface has an XDP program of somebody else's.
    #[error(
        "{0} has an XDP program already, and takes only one: use `--shield tcx`, or detach it with \
         `ip link set dev {0} xdp off` if nobody needs it"
    )]
    XdpTaken(String),
    /// The interface takes no XDP program in its driver.
    #[error("the driver of {ifname} takes no XDP program: use `--shield tcx`")]
    NoNativeXdp {
        /// The interface.
        ifname: String,
        /// What aya or the kernel answered.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The link layer of the interface is not one that the shield can read.
    #[error(
        "packets of {ifname} begin with a header that the shield does not know (type {kind} in \
         linux/if_arp.h): use `--shield off`"
    )]
    UnknownLinkLayer {
        /// The interface.
        ifname: String,
        /// `ARPHRD_*`.
        kind: u16,
    },
    /// The object and this binary come from different sources.
    #[error(
        "the eBPF object has ABI version {found}, this binary needs {expected}: run \
         `cargo xtask build-ebpf`, then build again"
    )]
    AbiMismatch {
        /// Version in the object.
        found: u32,
        /// Version of this binary.
        expected: u32,
    },
    /// The object lacks a program or a map, or is no BPF object at all.
    #[error("the eBPF object is damaged ({what}): run `cargo xtask build-ebpf`, then build again")]
    BadObject {
        /// What is wrong with it.
        what: String,
        /// What the parser answered, where it was asked.
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// The verifier of this kernel does not accept a program.
    #[error("the kernel's verifier refused program {program}; please report its log:\n{log}")]
    Verifier {
        /// The program.
        program: &'static str,
        /// What the verifier wrote.
        log: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A table cannot take more entries.
    #[error("table {table} is full: it holds {limit} entries")]
    TableFull {
        /// The map's name.
        table: &'static str,
        /// Its most entries.
        limit: u32,
    },
    /// The rules do not fit. Until others do, nothing that a peer initiates is admitted.
    #[error("nothing is admitted: {0}")]
    Filter(#[from] TooLarge),
    /// A flow cannot be forwarded from one address family to the other.
    #[error("the addresses of a forwarded flow are of two families")]
    MixedFamilies,
    /// Any other failure of a system call.
    #[error("{operation} failed")]
    Kernel {
        /// What was being done.
        operation: String,
        /// What aya or the kernel answered.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl DataplaneError {
    /// Sorts an error of aya or of the system by what an operator can do about it.
    pub(crate) fn new(
        operation: impl Into<String>,
        source: impl Error + Send + Sync + 'static,
    ) -> Self {
        let operation = operation.into();
        match os_error(&source) {
            Some(error) if refused(error) => {
                let source = error_copy(error);
                Self::NotPermitted { operation, source }
            }
            Some(_) | None => Self::Kernel {
                operation,
                source: Box::new(source),
            },
        }
    }

    /// Sorts an error of loading `program`. The verifier also answers EACCES, but never in silence.
    pub(crate) fn loading(program: &'static str, error: ProgramError) -> Self {
        let operation = || format!("loading eBPF program {program}");
        match error {
            ProgramError::LoadError {
                io_error,
                verifier_log,
            } => {
                let log = verifier_log.to_string();
                if log.trim().is_empty() || refused(&io_error) && !may_use_packet_pointers() {
                    Self::new(operation(), io_error)
                } else {
                    Self::Verifier {
                        program,
                        log,
                        source: io_error,
                    }
                }
            }
            error => Self::new(operation(), error),
        }
    }
}

/// Returns the errno under `error`.
pub(crate) fn os_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<io::Error>()
            && found.raw_os_error().is_some()
        {
            return Some(found);
        }
        next = below(error);
    }
    None
}

/// Returns the next error down, also where aya's "transparent" variants skip one as a source.
fn below<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(ProgramError::TcError(inner)) = error.downcast_ref() {
        return Some(inner);
    }
    if let Some(ProgramError::MapError(inner)) = error.downcast_ref() {
        return Some(inner);
    }
    if let Some(ProgramError::IOError(inner)) = error.downcast_ref() {
        return Some(inner);
    }
    if let Some(TcError::IoError(inner)) = error.downcast_ref() {
        return Some(inner);
    }
    if let Some(MapError::IoError(inner)) = error.downcast_ref() {
        return Some(inner);
    }
    error.source()
}

/// Whether the system call under `error` ended with one of `codes`.
pub(crate) fn is_errno(error: &(dyn Error + 'static), code: rustix::io::Errno) -> bool {
    os_error(error).and_then(io::Error::raw_os_error) == Some(code.raw_os_error())
}

/// EPERM and EACCES are refusals; ENOSYS is a kernel or a seccomp filter without bpf(2).
fn refused(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::PERM, Errno::ACCESS, Errno::NOSYS]
        .map(|code| Some(code.raw_os_error()))
        .contains(&error.raw_os_error())
}

/// Without CAP_PERFMON the verifier refuses arithmetic on packet pointers that it otherwise admits.
/// Unknown counts as yes: the verifier's log is the better answer then.
fn may_use_packet_pointers() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    let enough = CapabilitySet::PERFMON | CapabilitySet::SYS_ADMIN;
    capabilities(None).map_or(true, |sets| sets.effective.intersects(enough))
}

/// `io::Error` cannot be cloned; an errno can.
fn error_copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use aya::sys::SyscallError;

    use super::*;

    fn syscall(code: rustix::io::Errno) -> MapError {
        MapError::SyscallError(SyscallError {
            call: "bpf_map_update_elem",
            io_error: code.into(),
        })
    }

    #[test]
    fn a_refusal_is_found_below_the_layers_of_aya() {
        let error = aya::EbpfError::MapError(syscall(rustix::io::Errno::PERM));
        let error = DataplaneError::new("filling PEERS_V4", error);
        assert!(
            matches!(error, DataplaneError::NotPermitted { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains("CAP_BPF"));
    }

    #[test]
    fn an_errno_is_found_below_transparent_layers() {
        let io_error = io::Error::from(rustix::io::Errno::NODEV);
        let error = ProgramError::TcError(TcError::IoError(io_error));
        assert!(is_errno(&error, rustix::io::Errno::NODEV));
    }

    #[test]
    fn other_errors_keep_their_source() {
        let error = DataplaneError::new("filling PEERS_V4", syscall(rustix::io::Errno::NOMEM));
        assert!(matches!(error, DataplaneError::Kernel { .. }), "{error:?}");
        assert_eq!(error.to_string(), "filling PEERS_V4 failed");
        assert!(is_errno(&error, rustix::io::Errno::NOMEM));
    }
}
