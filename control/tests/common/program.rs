//! The real program, as a process of its own, and its commands.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// A running `tailrace-control serve`; ends with the test.
pub(crate) struct Program {
    child: Child,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) derp: SocketAddr,
    stun: SocketAddr,
}

impl Program {
    /// Starts it on free ports of loopback, with further flags; waits until it answers.
    pub(crate) fn start(scheme: &str, flags: &[&str]) -> Self {
        // All at once, so that they differ.
        let tcp = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let [address, derp] = tcp.map(|socket| socket.local_addr().unwrap());
        let stun = udp.local_addr().unwrap();
        drop(udp);
        let folder = tempfile::tempdir().unwrap();
        let url = format!("{scheme}://{address}");
        let child = spawn(folder.path(), [address, derp, stun], &url, flags);
        let program = Self {
            child,
            folder,
            address,
            derp,
            stun,
        };
        program.ok(&["users", "create", "ann"]);
        program
    }

    /// Kills it without a word and starts it anew, on the same state and ports.
    pub(crate) fn kill_and_restart(&mut self, url: &str, flags: &[&str]) {
        self.kill();
        let ports = [self.address, self.derp, self.stun];
        self.child = spawn(self.folder.path(), ports, url, flags);
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends it a signal, by name.
    pub(crate) fn signal(&self, name: &str) {
        let mut command = Command::new("kill");
        command.args(["-s", name, &self.child.id().to_string()]);
        assert!(command.status().unwrap().success());
    }

    /// Runs an admin command.
    pub(crate) fn command(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tailrace-control"));
        command.arg("--state-dir").arg(self.folder.path());
        command.args(args).output().unwrap()
    }

    /// Runs an admin command that must succeed; returns what it printed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.command(args);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {complaint}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// An auth key of ann's.
    pub(crate) fn auth_key(&self, flags: &[&str]) -> String {
        self.ok(&[&["keys", "create", "--user", "ann"], flags].concat())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // A test that ends with the server gone has killed it itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &Path, ports: [SocketAddr; 3], url: &str, flags: &[&str]) -> Child {
    let [address, derp, stun] = ports.map(|port| port.to_string());
    let mut child = Command::new(env!("CARGO_BIN_EXE_tailrace-control"))
        .args(["serve", "--server-url", url, "--listen", &address])
        .args(["--derp-listen", &derp, "--stun-listen", &stun])
        .arg("--state-dir")
        .arg(folder)
        .args(flags)
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = String::new();
    loop {
        let line = log.next().unwrap_or_else(|| panic!("it ended:\n{said}"));
        said += &line.unwrap();
        said.push('\n');
        if said.contains("serving nodes") {
            break;
        }
    }
    // Somebody has to read it, or the server would wait for that.
    std::thread::spawn(move || log.count());
    child
}
