//! A network namespace with a mount and a host name of its own: one machine of the lab.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{self, Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};

use crate::folder::PREFIX;
use crate::process::{Process, finish, run};
use crate::wait::scaled;

/// What sets one machine of the lab apart from the next.
const KINDS: ThreadNameSpaceType = ThreadNameSpaceType::NETWORK
    .union(ThreadNameSpaceType::MOUNT)
    .union(ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME);

/// A named network namespace (`ip netns` lists it) with its own `/sys`, BPF file system and host
/// name, so that two daemons in two namespaces share as little as on two machines.
///
/// A holder process keeps it alive; dropping the guard ends the holder and removes the name.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    holder: Child,
    pidfd: OwnedFd,
}

impl Namespace {
    /// Makes the namespace `tr<pid>-<label>` with `lo` up; a taken name gets a number.
    ///
    /// # Errors
    ///
    /// Without root, or when `ip` is missing.
    pub fn new(label: &str) -> Result<Namespace> {
        let name = claim(label);
        let mut command = Command::new("cat"); // ends when our end of the pipe closes
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        detach(&mut command, label.as_bytes().to_vec());
        let holder = command
            .spawn()
            .with_context(|| format!("cannot make the namespace {name}: is this root?"))?;
        let pidfd = pidfd_open(Pid::from_child(&holder), PidfdFlags::empty())?;
        let namespace = Namespace {
            name,
            holder,
            pidfd,
        };
        let pid = namespace.holder.id().to_string();
        run(Command::new("ip").args(["netns", "attach", &namespace.name, &pid]))?;
        // Addresses are unique by construction: usable at once, without duplicate detection.
        let _no_ipv6_here = namespace.sysctl("net/ipv6/conf/default/accept_dad", "0");
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The name that `ip netns exec` takes.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        match self.pidfd.try_clone() {
            Ok(pidfd) => join(&mut command, Ok(pidfd)),
            Err(error) => join(&mut command, Err(error)),
        }
        command
    }

    /// Runs a command inside and returns its standard output.
    ///
    /// # Errors
    ///
    /// As [`run`].
    pub fn exec<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<String> {
        let (program, arguments) = words.split_first().context("no command given")?;
        run(self.command(program).args(arguments))
    }

    /// Runs a command inside to its end, whatever its status.
    ///
    /// # Errors
    ///
    /// When it cannot start.
    pub fn output<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<Output> {
        let (program, arguments) = words.split_first().context("no command given")?;
        finish(self.command(program).args(arguments))
    }

    /// Starts a process inside.
    ///
    /// # Errors
    ///
    /// When it cannot start.
    pub fn spawn<S: AsRef<OsStr>>(&self, label: &str, words: &[S]) -> Result<Process> {
        let (program, arguments) = words.split_first().context("no command given")?;
        let mut command = self.command(program);
        command.args(arguments);
        Process::spawn(label, command)
    }

    /// Runs `ip <words>` inside; words are split at blanks.
    ///
    /// # Errors
    ///
    /// When `ip` complains.
    pub fn ip(&self, words: &str) -> Result<String> {
        run(Command::new("ip")
            .args(["-n", &self.name])
            .args(words.split_whitespace()))
    }

    /// Loads an nftables ruleset.
    ///
    /// # Errors
    ///
    /// When `nft` complains.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        let mut child = self
            .command("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run nft")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(ruleset.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "nft refused: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Runs `closure` on a thread of its own that has entered the namespace.
    ///
    /// # Errors
    ///
    /// When entering fails.
    pub fn enter<T: Send>(&self, closure: impl FnOnce() -> T + Send) -> Result<T> {
        let pidfd = self.pidfd.as_fd();
        thread::scope(|scope| {
            let inside = scope.spawn(|| -> Result<T> {
                enter_thread(pidfd).context("cannot enter the namespace")?;
                Ok(closure())
            });
            inside
                .join()
                .map_err(|_| anyhow!("the closure panicked in {}", self.name))?
        })
    }

    /// Runs `closure` on a thread of its own that has entered the namespace, and does not wait for it.
    ///
    /// # Errors
    ///
    /// When entering fails.
    pub fn enter_detached(
        &self,
        closure: impl FnOnce() + Send + 'static,
    ) -> Result<thread::JoinHandle<()>> {
        let pidfd = self.pidfd.try_clone()?;
        let (sender, entered) = mpsc::channel();
        let inside = thread::spawn(move || {
            let result = enter_thread(pidfd.as_fd());
            let may_run = result.is_ok();
            // Nobody listens only if the caller is gone.
            if sender.send(result).is_ok() && may_run {
                closure();
            }
        });
        let result = entered.recv().context("the thread ended")?;
        result.context("cannot enter the namespace")?;
        Ok(inside)
    }

    /// Sets a network sysctl, `name` as a path: `net/ipv4/ip_forward`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.enter(|| fs::write(format!("/proc/sys/{name}"), value))?
            .with_context(|| format!("cannot set {name}"))
    }

    /// Fetches `path` by plain HTTP from `address`, seen from inside; returns status and body.
    ///
    /// # Errors
    ///
    /// When nothing answers within 5 s (scaled).
    pub fn http_get(&self, address: SocketAddr, path: &str) -> Result<(u16, String)> {
        self.enter(|| http_get(address, path))?
            .with_context(|| format!("GET http://{address}{path}"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill(); // fails only if it has ended already
        let _ = self.holder.wait();
        if let Err(error) = run(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("testnet: namespace {} stays: {error:#}", self.name);
        }
        names().remove(&self.name);
    }
}

/// Names in use by this process.
fn names() -> std::sync::MutexGuard<'static, BTreeSet<String>> {
    static NAMES: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    NAMES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn claim(label: &str) -> String {
    let mut names = names();
    let first = format!("{PREFIX}{}-{label}", process::id());
    let mut name = first.clone();
    let mut number = 1;
    while !names.insert(name.clone()) {
        number += 1;
        name = format!("{first}{number}");
    }
    name
}

/// Has the child start in new namespaces, with `/sys` and the BPF file system mounted afresh.
#[expect(unsafe_code, reason = "`pre_exec` runs between fork and exec")]
fn detach(command: &mut Command, host_name: Vec<u8>) {
    let steps = move || -> io::Result<()> {
        let flags = UnshareFlags::NEWNET | UnshareFlags::NEWNS | UnshareFlags::NEWUTS;
        // SAFETY: none of these flags changes which file descriptors are open.
        unsafe { rustix::thread::unshare_unsafe(flags)? };
        // Mounts of the host keep arriving (and leaving), ours do not get out.
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change(c"/", slave)?;
        mount(c"sysfs", c"/sys", c"sysfs", MountFlags::empty(), None)?;
        // A kernel without BPF has no such folder; daemons cope with that.
        let _ = mount(c"bpf", c"/sys/fs/bpf", c"bpf", MountFlags::empty(), None);
        rustix::system::sethostname(&host_name)?;
        Ok(())
    };
    // SAFETY: the closure only makes system calls on values made before the fork.
    unsafe { command.pre_exec(steps) };
}

/// Has the child join the namespaces of the holder.
#[expect(unsafe_code, reason = "`pre_exec` runs between fork and exec")]
fn join(command: &mut Command, pidfd: io::Result<OwnedFd>) {
    let steps = move || -> io::Result<()> {
        let pidfd = pidfd
            .as_ref()
            .map_err(|error| io::Error::from(error.kind()))?;
        Ok(move_into_thread_name_spaces(pidfd.as_fd(), KINDS)?)
    };
    // SAFETY: the closure makes one system call on a descriptor made before the fork.
    unsafe { command.pre_exec(steps) };
}

/// Moves the calling thread into the holder's namespaces.
#[expect(unsafe_code, reason = "unsharing the thread's view of the file system")]
fn enter_thread(pidfd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    // A mount namespace can only be joined by a thread with its own root and working folder.
    // SAFETY: the flag leaves the file descriptor table shared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS)? };
    move_into_thread_name_spaces(pidfd, KINDS)
}

pub(crate) fn http_get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let limit = scaled(Duration::from_secs(5));
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((status.context("no HTTP status")?, body.to_owned()))
}
