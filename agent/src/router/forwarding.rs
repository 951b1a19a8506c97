//! The host's switches: for forwarding, set with the operator's consent, and for marks in the reverse path
//! filter; put back when they are not needed any more.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use settings::private_file;

use crate::blocking::in_place;

/// Remembers, in the state folder, what was set and what it was before: also after a crash.
const RECORD: &str = "forwarding.json";
const ROOT: &str = "/proc/sys";

/// One switch, in the spelling of sysctl(8).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Switch {
    /// Forwards IPv4.
    Ipv4,
    /// Forwards IPv6.
    Ipv6,
}

impl Switch {
    /// Name for sysctl(8).
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "net.ipv4.ip_forward",
            Self::Ipv6 => "net.ipv6.conf.all.forwarding",
        }
    }
}

/// Returns the switches that forwarding these routes needs and that are off.
pub(crate) fn missing(routes: &[IpNet]) -> Vec<Switch> {
    missing_below(Path::new(ROOT), routes)
}

fn missing_below(root: &Path, routes: &[IpNet]) -> Vec<Switch> {
    let needs = |switch: &Switch| {
        let ipv4 = *switch == Switch::Ipv4;
        let wanted = routes.iter().any(|net| net.addr().is_ipv4() == ipv4);
        // A kernel without IPv6 has nothing to switch on.
        wanted && read(root, switch.name()).is_ok_and(|value| value == "0")
    };
    [Switch::Ipv4, Switch::Ipv6]
        .into_iter()
        .filter(needs)
        .collect()
}

/// Whether this host forwards anything, from whichever interface. What cannot be read counts as yes.
pub(crate) fn is_on() -> bool {
    is_on_below(Path::new(ROOT))
}

fn is_on_below(root: &Path) -> bool {
    ["net/ipv4/conf", "net/ipv6/conf"]
        .into_iter()
        .any(|family| {
            // A kernel without IPv6 forwards none.
            let Ok(interfaces) = std::fs::read_dir(root.join(family)) else {
                return family == "net/ipv4/conf";
            };
            interfaces.flatten().any(|interface| {
                let value = std::fs::read_to_string(interface.path().join("forwarding"));
                value.is_ok_and(|value| value.trim() != "0")
            })
        })
}

/// Has a strict reverse path filter (`rp_filter=1`) look at marks: what comes in for our own underlay sockets
/// carries theirs (see the firewall's `prerouting`), and without it such a filter drops answers that the
/// routes of an exit node would send elsewhere. wg-quick and upstream set the same.
const VALID_MARK: &str = "net.ipv4.conf.all.src_valid_mark";

/// What the host's switches are wanted for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Wanted {
    /// Routes to forward for; `None` if the switches for that are not ours to set.
    pub(crate) routes: Option<Vec<IpNet>>,
    /// Everything is captured for an exit node, but for what carries our mark.
    pub(crate) marks_decide: bool,
}

/// Sets what is wanted, remembers what that changed, and puts back what is wanted no more.
///
/// # Errors
///
/// Whatever the system answered.
pub(crate) fn arrange(state_dir: &Path, wanted: &Wanted) -> io::Result<()> {
    arrange_below(Path::new(ROOT), state_dir, wanted)
}

fn arrange_below(root: &Path, state_dir: &Path, wanted: &Wanted) -> io::Result<()> {
    restore_below(root, state_dir, |name| match name == VALID_MARK {
        true => !wanted.marks_decide,
        false => wanted.routes.is_none(),
    })?;
    if wanted.marks_decide
        && is_strict(root)?
        && read(root, VALID_MARK).is_ok_and(|value| value == "0")
    {
        set(root, state_dir, VALID_MARK, "0", "1")?;
        tracing::info!(sysctl = VALID_MARK, "switched on");
    }
    match &wanted.routes {
        Some(routes) => enable_below(root, state_dir, routes),
        None => Ok(()),
    }
}

/// Whether some interface, or all, filter strictly.
fn is_strict(root: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(root.join("net/ipv4/conf"))? {
        let value = std::fs::read_to_string(entry?.path().join("rp_filter"));
        if value.is_ok_and(|value| value.trim() == "1") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Switches on what forwarding these routes needs, and remembers what it changed.
///
/// A host that forwards IPv6 stops listening to router advertisements, its own default route among them,
/// unless `accept_ra` is 2: interfaces that listen now go on to.
fn enable_below(root: &Path, state_dir: &Path, routes: &[IpNet]) -> io::Result<()> {
    for switch in missing_below(root, routes) {
        if switch == Switch::Ipv6 {
            for name in listeners(root)? {
                set(root, state_dir, &name, "1", "2")?;
            }
        }
        set(root, state_dir, switch.name(), "0", "1")?;
        tracing::info!(sysctl = switch.name(), "forwarding switched on");
    }
    Ok(())
}

/// Puts back what [`arrange`] changed and nobody changed since; nothing changed is fine.
///
/// # Errors
///
/// Whatever the system answered.
pub(crate) fn restore(state_dir: &Path) -> io::Result<()> {
    restore_below(Path::new(ROOT), state_dir, |_| true)
}

fn restore_below(root: &Path, state_dir: &Path, which: impl Fn(&str) -> bool) -> io::Result<()> {
    let record = load(state_dir)?;
    let (back, kept): (Record, Record) = record.into_iter().partition(|(name, _)| which(name));
    if back.is_empty() {
        return Ok(());
    }
    for (name, Change { before, after }) in &back {
        // An interface may be gone.
        if read(root, name).is_ok_and(|now| now == *after) {
            std::fs::write(path(root, name), before)?;
        }
    }
    if kept.is_empty() {
        return std::fs::remove_file(state_dir.join(RECORD));
    }
    save(state_dir, &kept)
}

/// What was changed, by the name of the switch.
type Record = BTreeMap<String, Change>;

#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
struct Change {
    before: String,
    after: String,
}

fn load(state_dir: &Path) -> io::Result<Record> {
    match std::fs::read(state_dir.join(RECORD)) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::new()),
        Err(error) => Err(error),
    }
}

/// Remembers first: a crash in between leaves nothing that is not put back.
fn set(root: &Path, state_dir: &Path, name: &str, before: &str, after: &str) -> io::Result<()> {
    let mut record = load(state_dir)?;
    let change = Change {
        before: before.to_owned(),
        after: after.to_owned(),
    };
    record.insert(name.to_owned(), change);
    save(state_dir, &record)?;
    std::fs::write(path(root, name), after)
}

fn save(state_dir: &Path, record: &Record) -> io::Result<()> {
    in_place(|| {
        private_file::write_with(&state_dir.join(RECORD), |file| {
            Ok(serde_json::to_writer(file, record)?)
        })
    })
}

/// The `accept_ra` switches of interfaces that listen to router advertisements while the host does not
/// forward. An interface with a dot in its name is left out: its sysctl has no such name.
fn listeners(root: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root.join("net/ipv6/conf"))? {
        let interface = entry?.file_name().to_string_lossy().into_owned();
        let name = format!("net.ipv6.conf.{interface}.accept_ra");
        let real = !["all", "default", "lo"].contains(&interface.as_str());
        if real && !interface.contains('.') && read(root, &name).is_ok_and(|value| value == "1") {
            names.push(name);
        }
    }
    Ok(names)
}

fn read(root: &Path, name: &str) -> io::Result<String> {
    Ok(std::fs::read_to_string(path(root, name))?.trim().to_owned())
}

fn path(root: &Path, name: &str) -> PathBuf {
    root.join(name.replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWITCHES: [(&str, &str); 6] = [
        ("net.ipv4.ip_forward", "0"),
        ("net.ipv6.conf.all.forwarding", "0"),
        ("net.ipv6.conf.eth0.accept_ra", "1"),
        ("net.ipv6.conf.eth1.accept_ra", "0"),
        ("net.ipv4.conf.all.src_valid_mark", "0"),
        ("net.ipv4.conf.eth0.rp_filter", "2"),
    ];

    fn host() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (root, state) = (folder.path().join("sys"), folder.path().join("state"));
        std::fs::create_dir(&state).unwrap();
        for (name, value) in SWITCHES {
            let path = path(&root, name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{value}\n")).unwrap();
        }
        (folder, root, state)
    }

    fn values(root: &Path) -> Vec<String> {
        let forwarding = SWITCHES.iter().take(4);
        forwarding
            .map(|(name, _)| read(root, name).unwrap())
            .collect()
    }

    #[test]
    fn one_interface_that_forwards_is_enough() {
        let (_folder, root, _state) = host();
        assert!(!is_on_below(&root));
        let path = path(&root, "net.ipv4.conf.eth0.forwarding");
        std::fs::write(&path, "1\n").unwrap();
        assert!(is_on_below(&root));
        std::fs::write(&path, "0\n").unwrap();
        assert!(!is_on_below(&root));
    }

    #[test]
    fn marks_count_in_a_strict_filter_only_as_long_as_they_decide() {
        let (_folder, root, state) = host();
        let mut wanted = Wanted {
            routes: Some(vec!["10.0.0.0/8".parse().unwrap()]),
            marks_decide: true,
        };
        let mark = || read(&root, VALID_MARK).unwrap();
        arrange_below(&root, &state, &wanted).unwrap();
        assert_eq!(mark(), "0", "the filter is loose");
        std::fs::write(path(&root, "net.ipv4.conf.eth0.rp_filter"), "1\n").unwrap();
        arrange_below(&root, &state, &wanted).unwrap();
        assert_eq!(mark(), "1");
        wanted.marks_decide = false;
        arrange_below(&root, &state, &wanted).unwrap();
        assert_eq!(mark(), "0");
        assert_eq!(values(&root), ["1", "0", "1", "0"]);
        arrange_below(&root, &state, &Wanted::default()).unwrap();
        assert_eq!(values(&root), ["0", "0", "1", "0"]);
        assert!(!state.join(RECORD).exists());
    }

    #[test]
    fn only_the_family_of_a_route_is_switched_and_put_back() {
        let (_folder, root, state) = host();
        let routes = ["10.0.0.0/8".parse().unwrap()];
        assert_eq!(missing_below(&root, &routes), [Switch::Ipv4]);
        enable_below(&root, &state, &routes).unwrap();
        assert_eq!(values(&root), ["1", "0", "1", "0"]);
        assert_eq!(missing_below(&root, &routes), []);
        restore_below(&root, &state, |_| true).unwrap();
        assert_eq!(values(&root), ["0", "0", "1", "0"]);
        restore_below(&root, &state, |_| true).unwrap();
    }

    #[test]
    fn an_ipv6_router_goes_on_hearing_its_own_router() {
        let (_folder, root, state) = host();
        enable_below(&root, &state, &["fd00::/64".parse().unwrap()]).unwrap();
        assert_eq!(values(&root), ["0", "1", "2", "0"]);
        restore_below(&root, &state, |_| true).unwrap();
        assert_eq!(values(&root), ["0", "0", "1", "0"]);
    }

    #[test]
    fn what_somebody_else_changed_since_stays() {
        let (_folder, root, state) = host();
        enable_below(&root, &state, &["fd00::/64".parse().unwrap()]).unwrap();
        let accept_ra = path(&root, "net.ipv6.conf.eth0.accept_ra");
        std::fs::write(accept_ra, "0\n").unwrap();
        restore_below(&root, &state, |_| true).unwrap();
        assert_eq!(values(&root), ["0", "0", "0", "0"]);
    }
}
