//! The guest's whole file system: host programs with their libraries, kernel modules, an init.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::{BOOTED, DONE, EXIT, Guest, SUITE, Step};
use crate::program::{find, quiet};
use crate::setup::Kernel;
use crate::workspace::{DAEMONS, text};

/// Programs of the host that steps run. busybox brings the rest.
const PROGRAMS: &[&str] = &[
    "ip",
    "ss",
    "tc",
    "nft",
    "iperf3",
    "ping",
    "bash",
    "hostname",
    "setpriv",
    "sha256sum",
];

/// Those taken along where the host has them; tests that need one and do not find it skip.
const OPTIONAL_PROGRAMS: &[&str] = &["conntrack", "iptables", "ip6tables"];
/// Extensions of iptables, which it loads when a rule names them.
const IPTABLES_EXTENSIONS: &str = "usr/lib/x86_64-linux-gnu/xtables";

/// Kernel modules; what they depend on comes along. Built-in ones and those that a kernel lacks
/// are left out silently: a test that needs one says so.
const MODULES: &[&str] = &[
    "wireguard",
    "veth",
    "bridge",
    "tun",
    "dummy",
    "af_packet",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
    "nft_ct",
    "nft_nat",
    "nft_reject_inet",
    "nft_redir",
    "nft_limit",
    "nft_log",
    "nft_fib_inet",
    "nft_flow_offload",
    "nf_flow_table_inet",
    "nf_conntrack",
    "nf_conntrack_netlink",
    // What iptables-nft, and so ufw and Docker, write their rules with.
    "nft_compat",
    "xt_conntrack",
    "xt_tcpudp",
    "xt_multiport",
    "xt_addrtype",
    "xt_mark",
    "xt_limit",
    "xt_hl",
    "xt_MASQUERADE",
    "xt_TCPMSS",
    "ipt_REJECT",
    "ip6t_REJECT",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "sch_netem",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "netkit",
];

/// Where the daemons are inside.
const BIN_DIR: &str = "/opt/tailrace";
/// Emulation is 10 to 20 times slower; deadlines stretch by this.
const TIME_SCALE: &str = "10";

/// A program to take along, under a name of its own.
#[derive(Clone, Debug)]
pub(crate) struct Executable {
    /// Name inside and in reports.
    pub(crate) name: String,
    /// Path on this host.
    pub(crate) path: PathBuf,
}

/// Builds the archive in `folder` and returns its path.
///
/// # Errors
///
/// When a program or its libraries cannot be copied.
pub(crate) fn build(kernel: &Kernel, guest: &Guest, folder: &Path) -> Result<PathBuf> {
    let root = folder.join("root");
    for name in [
        "bin",
        "dev",
        "etc",
        "lib",
        "mods",
        "opt/tailrace",
        "proc",
        "run/netns",
        "sys",
        "steps",
        "tmp",
        "usr/bin",
        "usr/sbin",
        "var/run",
    ] {
        fs::create_dir_all(root.join(name))?;
    }
    let busybox = find("busybox").context("busybox is not installed")?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    for name in PROGRAMS {
        let path = find(name).with_context(|| format!("{name} is not installed"))?;
        install(&path, &root, &format!("usr/bin/{name}"))?;
    }
    for name in OPTIONAL_PROGRAMS {
        if let Some(path) = find(name) {
            install(&path, &root, &format!("usr/bin/{name}"))?;
        }
    }
    for program in &guest.programs {
        install(&program.path, &root, &format!("usr/bin/{}", program.name))?;
    }
    extensions(&root)?;
    if let Some(daemons) = &guest.daemons {
        for (_, name) in DAEMONS {
            strip(&daemons.join(name), &root, &format!("opt/tailrace/{name}"))?;
        }
    }
    for Step { program, .. } in &guest.steps {
        strip(&program.path, &root, &format!("steps/{}", program.name))?;
    }
    modules(kernel, &root.join("mods"))?;
    names(&root)?;
    let init = root.join("init");
    fs::write(&init, script(guest))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    pack(&root, &folder.join("initramfs.cpio"))
}

/// Copies a program and the libraries it is linked against.
fn install(program: &Path, root: &Path, name: &str) -> Result<()> {
    fs::copy(program, root.join(name))
        .with_context(|| format!("cannot copy {}", program.display()))?;
    libraries(program, root)
}

/// As [`install`], without debug information: the archive lives in the guest's memory.
fn strip(program: &Path, root: &Path, name: &str) -> Result<()> {
    let copy = root.join(name);
    quiet(
        Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(&copy)
            .arg(program),
    )?;
    libraries(program, root)
}

/// Copies the extensions of iptables, if the host has any.
fn extensions(root: &Path) -> Result<()> {
    let Ok(folder) = fs::read_dir(Path::new("/").join(IPTABLES_EXTENSIONS)) else {
        return Ok(());
    };
    fs::create_dir_all(root.join(IPTABLES_EXTENSIONS))?;
    for entry in folder {
        let path = entry?.path();
        if let Some(name) = path.file_name() {
            fs::copy(&path, root.join(IPTABLES_EXTENSIONS).join(name))?;
        }
    }
    Ok(())
}

fn libraries(program: &Path, root: &Path) -> Result<()> {
    let listing = quiet(Command::new("ldd").arg(program))?;
    for library in listing
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let copy = root.join(library.trim_start_matches('/'));
        if copy.exists() {
            continue;
        }
        if let Some(parent) = copy.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(library, &copy).with_context(|| format!("cannot copy {library}"))?;
    }
    Ok(())
}

/// Unpacks the modules into `folder`, named in the order of loading.
fn modules(kernel: &Kernel, folder: &Path) -> Result<()> {
    let mut order: Vec<PathBuf> = Vec::new();
    for module in MODULES {
        let listing = quiet(Command::new("modprobe").args([
            "-d",
            text(&kernel.tree)?,
            "-S",
            &kernel.version,
            "--show-depends",
            module,
        ]));
        let Ok(listing) = listing else { continue };
        for line in listing
            .lines()
            .filter_map(|line| line.strip_prefix("insmod "))
        {
            let path = PathBuf::from(line.split(' ').next().unwrap_or(line)); // options follow
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    ensure!(
        !order.is_empty(),
        "modprobe finds no modules in {}",
        kernel.tree.display()
    );
    for (number, path) in order.iter().enumerate() {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .context("module name")?;
        let stem = name.split('.').next().unwrap_or(name);
        let target = folder.join(format!("{number:03}-{stem}.ko"));
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => {
                let mut xz = Command::new("xz");
                xz.arg("-dc").arg(path).stdout(File::create(&target)?);
                crate::program::run(&mut xz)?;
            }
            Some("ko") => drop(fs::copy(path, &target)?),
            other => bail!(
                "{} is compressed in an unknown way: {other:?}",
                path.display()
            ),
        }
    }
    Ok(())
}

/// What programs look up by name: users and groups, for tests that give up root, and protocols, for `ip` and `nft`.
fn names(root: &Path) -> Result<()> {
    let users = "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n";
    fs::write(root.join("etc/passwd"), users)?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    fs::write(
        root.join("etc/protocols"),
        "icmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\n",
    )?;
    fs::write(
        root.join("etc/hosts"),
        "127.0.0.1 localhost\n::1 localhost\n",
    )?;
    Ok(())
}

/// The guest's first and only process tree.
fn script(guest: &Guest) -> String {
    let mut environment = format!(
        "export TAILRACE_BIN_DIR={BIN_DIR} TAILRACE_TIME_SCALE={TIME_SCALE} RUST_BACKTRACE=0\n"
    );
    for (name, value) in &guest.environment {
        environment.push_str(&format!("export {name}={value}\n"));
    }
    let mut steps = String::new();
    for Step { program, arguments } in &guest.steps {
        let name = &program.name;
        let arguments: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
        let arguments = arguments.join(" ");
        steps.push_str(&format!(
            "echo \"{SUITE}{name}\"\n/steps/{name} {arguments} 2>&1\necho \"{EXIT}{name} $?\"\n"
        ));
    }
    format!(
        r#"#!/bin/busybox sh
# Real programs before busybox's applets of the same name.
export PATH=/usr/bin:/usr/sbin:/bin:/sbin HOME=/tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
chmod 1777 /tmp
mkdir -p /dev/pts /dev/net /run/netns
mount -t devpts devpts /dev/pts
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
echo "{BOOTED}$(uname -r)"
for module in /mods/*.ko; do insmod $module || echo "module $module failed"; done
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
chmod 666 /dev/net/tun
ip link set lo up
{environment}
{steps}
echo "{DONE}"
poweroff -f
"#
    )
}

/// The word as a shell reads it back.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Packs `root` as a newc archive, uncompressed: unpacking it emulated would take longer.
fn pack(root: &Path, archive: &Path) -> Result<PathBuf> {
    let mut find = Command::new("find")
        .arg(".")
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run find")?;
    let names = find.stdout.take().context("no output of find")?;
    let mut cpio = Command::new("cpio");
    cpio.args(["--quiet", "-o", "-H", "newc"])
        .current_dir(root)
        .stdin(names)
        .stdout(File::create(archive)?);
    crate::program::run(&mut cpio)?;
    ensure!(find.wait()?.success(), "find failed");
    Ok(archive.to_owned())
}
