//! Cables and switches between namespaces.

use std::process::Command;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use anyhow::Result;

use crate::cable::{Cable, Line, Watchers};
use crate::namespace::Namespace;
use crate::process::run;

/// Lays a cable: a veth pair, one end in each namespace, both up.
///
/// The pair goes when either namespace does.
///
/// # Errors
///
/// When `ip` refuses, as for a name in use.
pub fn veth(a: (&Namespace, &str), b: (&Namespace, &str)) -> Result<()> {
    let (a_space, a_name) = a;
    let (b_space, b_name) = b;
    run(Command::new("ip").args([
        "link",
        "add",
        a_name,
        "netns",
        a_space.name(),
        "type",
        "veth",
        "peer",
        "name",
        b_name,
        "netns",
        b_space.name(),
    ]))?;
    a_space.ip(&format!("link set {a_name} up"))?;
    b_space.ip(&format!("link set {b_name} up"))?;
    Ok(())
}

/// A switch: a bridge in a namespace of its own. It has no address and sees every frame.
#[derive(Debug)]
pub struct Bridge {
    namespace: Namespace,
    ports: u32,
    /// What the cables are like that are laid from now on; `None` is a plain one.
    line: Option<Line>,
    cables: Vec<Cable>,
    watchers: Watchers,
}

impl Bridge {
    /// Makes the switch.
    ///
    /// # Errors
    ///
    /// As [`Namespace::new`].
    pub fn new(label: &str) -> Result<Bridge> {
        let namespace = Namespace::new(label)?;
        // Answer at once: no spanning tree among our cables.
        namespace.ip("link add bridge type bridge stp_state 0 forward_delay 0")?;
        namespace.ip("link set bridge up")?;
        Ok(Bridge {
            namespace,
            ports: 0,
            line: None,
            cables: Vec::new(),
            watchers: Watchers::default(),
        })
    }

    /// Plugs `host` in; its interface is called `name`.
    ///
    /// # Errors
    ///
    /// As [`veth`].
    pub fn plug(&mut self, host: &Namespace, name: &str) -> Result<()> {
        let port = format!("port{}", self.ports);
        self.ports += 1;
        let ends = ((host, name), (&self.namespace, port.as_str()));
        match self.line {
            None => veth(ends.0, ends.1)?,
            Some(line) => {
                // Each loses frames of its own: of the two seeds a cable takes, neither is another's.
                let seed = line.seed.wrapping_add(2 * u64::from(self.ports));
                let line = Line { seed, ..line };
                let cable = Cable::lay(ends.0, ends.1, line, &self.watchers)?;
                self.cables.push(cable);
            }
        }
        self.namespace
            .ip(&format!("link set {port} master bridge"))?;
        Ok(())
    }

    /// Has hosts that are plugged in from now on send and receive by cables like `line`.
    pub fn lay(&mut self, line: Line) {
        self.line = Some(line);
    }

    /// Tells when Ethernet frames that `likes` says yes to enter one of those cables, at either end.
    pub fn watch(&self, likes: impl Fn(&[u8]) -> bool + Send + 'static) -> Receiver<Instant> {
        self.watchers.watch(likes)
    }

    /// The namespace it lives in.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}
