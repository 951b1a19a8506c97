//! Real daemons in a lab, driven through their command lines as an operator would.

mod control;
mod node;
mod relay;

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

pub use control::{Control, ControlOptions};
pub use node::{Engine, Node, Peer};
pub use relay::Relay;

use crate::lab::{Host, Lab};

/// Time within which a started daemon answers.
const START: std::time::Duration = std::time::Duration::from_secs(20);

/// A coordination server with an embedded relay and joined nodes behind NAT.
///
/// Fields drop in order: daemons first, the lab last.
#[derive(Debug)]
pub struct Tailnet {
    /// Joined nodes, in the order asked for.
    pub nodes: Vec<Node>,
    /// The coordination server.
    pub control: Control,
    /// The internet between them.
    pub lab: Lab,
}

impl Tailnet {
    /// Starts control and one node per name, each behind a NAT of its own, joined by auth key.
    ///
    /// # Errors
    ///
    /// When a daemon does not start or a node does not join; the message holds what it printed.
    pub fn new(names: &[&str]) -> Result<Tailnet> {
        Tailnet::of(names, Node::start)
    }

    /// As [`new`](Self::new), but nodes reach each other through the relay only.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn relayed(names: &[&str]) -> Result<Tailnet> {
        Tailnet::of(names, Node::start_relayed)
    }

    fn of(names: &[&str], start: impl Fn(Host) -> Result<Node>) -> Result<Tailnet> {
        let mut lab = Lab::new()?;
        let control = Control::start(lab.server("control")?, ControlOptions::default())?;
        let key = control.auth_key(&["--reusable"])?;
        let mut nodes = Vec::new();
        for name in names {
            let node = start(lab.behind_nat(name)?)?;
            node.join(&control.url(), &key)?;
            nodes.push(node);
        }
        Ok(Tailnet {
            nodes,
            control,
            lab,
        })
    }
}

/// Path of one of our programs: in `TAILRACE_BIN_DIR`, else beside the running test.
///
/// # Errors
///
/// When it is not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let folder = match env::var_os("TAILRACE_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => env::current_exe()?
            .ancestors()
            .skip(1)
            .find(|folder| folder.join(name).is_file())
            .with_context(|| format!("{name} is not built and TAILRACE_BIN_DIR is not set"))?
            .to_owned(),
    };
    let path = folder.join(name);
    ensure!(
        path.is_file(),
        "{} is missing: cargo build first",
        path.display()
    );
    Ok(path)
}
