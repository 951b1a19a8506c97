//! Debian's ufw and firewalld on one machine of the lab.
//!
//! `cargo xtask setup lab` unpacks them into the cache instead of installing them: the host itself never
//! runs a firewall because of our tests. A machine of the lab sees them laid over its `/usr` and `/etc`.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait::wait_until;

const START: Duration = Duration::from_secs(30);
/// Where ufw keeps the rules that come with it; its package copies them to `/etc` when installed.
const UFW_RULES: &str = "/usr/share/ufw/iptables";
/// A bus for everybody, on which nothing is started by itself: no polkit, so firewalld trusts root.
const BUS: &str = r#"<busconfig>
<type>system</type>
<listen>unix:path=/run/dbus/system_bus_socket</listen>
<policy context="default">
<allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>
</policy>
</busconfig>
"#;

/// What outlives `cargo clean`: `$TAILRACE_CACHE`, else `$XDG_CACHE_HOME/tailrace`, else `~/.cache/tailrace`.
#[must_use]
pub fn cache() -> Option<PathBuf> {
    let folder = |name: &str| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    folder("TAILRACE_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|path| path.join("tailrace")))
        .or_else(|| folder("HOME").map(|path| path.join(".cache/tailrace")))
}

/// Where the packages are unpacked: a tree with `etc` and `usr`.
#[must_use]
pub fn firewalls_tree() -> Option<PathBuf> {
    cache().map(|cache| cache.join("firewalls"))
}

/// ufw, enabled with its defaults: nothing comes in, nothing is forwarded.
#[derive(Debug)]
pub struct Ufw<'a>(&'a Namespace);

impl<'a> Ufw<'a> {
    /// Lays it over `space` and enables it.
    ///
    /// # Errors
    ///
    /// When a mount fails, or ufw complains.
    pub fn enable(space: &'a Namespace) -> Result<Self> {
        overlay(space)?;
        let rules = format!("cp {UFW_RULES}/*.rules {UFW_RULES}/../ufw.conf /etc/ufw/");
        space.exec(&["sh", "-c", &rules])?;
        let ufw = Self(space);
        ufw.run(&["--force", "enable"])?;
        Ok(ufw)
    }

    /// Runs `ufw <words>`.
    ///
    /// # Errors
    ///
    /// When ufw complains.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        self.0.exec(&[&["/usr/sbin/ufw"], words].concat())
    }
}

/// firewalld on a system bus of its own, with its defaults: zone `public` for everything.
///
/// Fields drop in order: the daemon first, its bus last.
#[derive(Debug)]
pub struct Firewalld<'a> {
    _daemon: Process,
    _bus: Process,
    space: &'a Namespace,
}

impl<'a> Firewalld<'a> {
    /// Lays it over `space` and starts it.
    ///
    /// # Errors
    ///
    /// When a mount fails, or a daemon does not answer.
    pub fn start(space: &'a Namespace) -> Result<Self> {
        overlay(space)?;
        space.enter(|| -> Result<()> {
            fs::create_dir_all("/run/dbus")?;
            Ok(fs::write("/run/bus.conf", BUS)?)
        })??;
        let bus = [
            "dbus-daemon",
            "--config-file=/run/bus.conf",
            "--nofork",
            "--nopidfile",
            "--nosyslog",
        ];
        let bus = space.spawn("dbus-daemon", &bus)?;
        wait_until(START, "the bus listens", || {
            let socket = space.enter(|| Path::new("/run/dbus/system_bus_socket").exists())?;
            ensure!(socket, "not yet");
            Ok(())
        })?;
        let daemon = ["/usr/sbin/firewalld", "--nofork", "--nopid"];
        let daemon = space.spawn("firewalld", &daemon)?;
        let firewalld = Self {
            _daemon: daemon,
            _bus: bus,
            space,
        };
        wait_until(START, "firewalld answers", || firewalld.run(&["--state"]))?;
        Ok(firewalld)
    }

    /// Runs `firewall-cmd <words>`.
    ///
    /// # Errors
    ///
    /// When firewall-cmd complains.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let text = self.space.exec(&[&["firewall-cmd"], words].concat())?;
        Ok(text.trim().to_owned())
    }
}

/// Lays the unpacked packages over `/usr` and `/etc` of `space`, and gives it a `/run` of its own.
fn overlay(space: &Namespace) -> Result<()> {
    let tree = firewalls_tree().context("no cache folder: set TAILRACE_CACHE or HOME")?;
    ensure!(
        tree.is_dir(),
        "{} is missing: cargo xtask setup lab",
        tree.display()
    );
    space.exec(&["mount", "-t", "tmpfs", "tmpfs", "/run"])?;
    space.exec(&["mkdir", "-p", "/run/etc/upper", "/run/etc/work"])?;
    for (folder, writable) in [
        ("usr", ""),
        ("etc", ",upperdir=/run/etc/upper,workdir=/run/etc/work"),
    ] {
        let lower = tree.join(folder);
        let options = format!("lowerdir={}:/{folder}{writable}", lower.display());
        let target = format!("/{folder}");
        space.exec(&["mount", "-t", "overlay", "overlay", "-o", &options, &target])?;
    }
    Ok(())
}
