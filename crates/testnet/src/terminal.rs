//! A real terminal: [`Terminal`].

use std::ffi::OsStr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::folder::Folder;
use crate::namespace::Namespace;
use crate::process::{Process, run};
use crate::wait::wait_until;

/// How long a terminal may take to show what it should.
const SHOWN: Duration = Duration::from_secs(20);

/// A tmux of its own, whose only pane is a shell of [`COLUMNS`](Self::COLUMNS) and [`ROWS`](Self::ROWS) in a namespace.
/// It ends with this.
#[derive(Debug)]
pub struct Terminal {
    _server: Process,
    folder: Folder,
}

impl Terminal {
    /// Its width in characters.
    pub const COLUMNS: usize = 80;
    /// Its height in lines.
    pub const ROWS: usize = 24;

    /// Starts tmux and the shell.
    ///
    /// # Errors
    ///
    /// When they do not start.
    pub fn open(space: &Namespace) -> Result<Terminal> {
        let folder = Folder::new("tmux")?;
        let socket = folder.path().join("socket");
        let mut server = space.command("tmux");
        // In the foreground: it ends with us, however we end.
        server
            .args(["-u", "-f", "/dev/null", "-D", "-S"])
            .arg(&socket);
        server.env("LC_ALL", "C.UTF-8").env_remove("TMUX");
        let terminal = Terminal {
            _server: Process::spawn("tmux", server)?,
            folder,
        };
        wait_until(SHOWN, "tmux listens", || {
            ensure!(socket.exists(), "no socket");
            Ok(())
        })?;
        let shell = "exec env -u TMUX PS1='$ ' sh";
        let (columns, rows) = (Self::COLUMNS.to_string(), Self::ROWS.to_string());
        terminal.tmux(&["new-session", "-d", "-x", &columns, "-y", &rows, shell])?;
        terminal.wait_for("the shell's prompt", |text| text.contains('$'))?;
        Ok(terminal)
    }

    /// What the terminal shows, as text.
    ///
    /// # Errors
    ///
    /// When tmux does not tell.
    pub fn text(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// What it shows, as text with the escapes (SGR) that say how it looks.
    ///
    /// # Errors
    ///
    /// When tmux does not tell.
    pub fn styled(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-e", "-p"])
    }

    /// Types a line and Enter.
    ///
    /// # Errors
    ///
    /// When tmux refuses.
    pub fn enter(&self, line: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", line])?;
        self.press("Enter")
    }

    /// Presses a key by its tmux name, as `Tab` or `q`.
    ///
    /// # Errors
    ///
    /// When tmux refuses.
    pub fn press(&self, key: &str) -> Result<()> {
        self.tmux(&["send-keys", key]).map(drop)
    }

    /// A variable of the pane, as `alternate_on`.
    ///
    /// # Errors
    ///
    /// When tmux does not tell.
    pub fn variable(&self, name: &str) -> Result<String> {
        let said = self.tmux(&["display-message", "-p", &format!("#{{{name}}}")])?;
        Ok(said.trim().to_owned())
    }

    /// Waits until what the terminal shows is right, and returns it.
    ///
    /// # Errors
    ///
    /// When it does not come; the message holds what is shown instead.
    pub fn wait_for(&self, what: &str, is_right: impl Fn(&str) -> bool) -> Result<String> {
        wait_until(SHOWN, &format!("the terminal shows {what}"), || {
            let text = self.text()?;
            ensure!(is_right(&text), "it shows:\n{text}");
            Ok(text)
        })
    }

    /// The process that the shell waits for.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn foreground(&self) -> Result<u32> {
        let shell = self.variable("pane_pid")?;
        let path = format!("/proc/{shell}/task/{shell}/children");
        let children = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let child = children.split_whitespace().next();
        child
            .context("the shell waits for nobody")?
            .parse()
            .context(path)
    }

    fn tmux<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<String> {
        let mut tmux = Command::new("tmux");
        tmux.args(["-u", "-S"])
            .arg(self.folder.path().join("socket"));
        run(tmux.args(words).env("LC_ALL", "C.UTF-8").env_remove("TMUX"))
    }
}
