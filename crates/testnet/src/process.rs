//! Child processes that cannot outlive their test.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};

use crate::wait::{scaled, wait_until};

/// Lines of a failed test's daemon that are shown.
const TAIL_LINES: usize = 40;

/// Runs `command` to its end and returns its standard output.
///
/// # Errors
///
/// When it cannot start or exits non-zero; the message holds the command line, status and output.
pub fn run(command: &mut Command) -> Result<String> {
    let output = finish(command)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{} failed ({}): {}{}",
        line(command),
        output.status,
        stdout,
        String::from_utf8_lossy(&output.stderr).trim_end(),
    );
    Ok(stdout)
}

/// Runs `command` to its end, whatever its status.
pub(crate) fn finish(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", line(command)))
}

/// The command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

/// A running child whose output is collected; killed on drop.
///
/// While a test panics, the drop also prints the last lines of the output.
#[derive(Debug)]
pub struct Process {
    label: String,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts `command`. `label` names it in messages.
    ///
    /// # Errors
    ///
    /// When the program cannot start.
    pub fn spawn(label: &str, mut command: Command) -> Result<Process> {
        die_with_parent(&mut command);
        // A group of its own: what it starts in turn ends with it, and Ctrl-C does not reach it.
        command.process_group(0);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", line(&command)))?;
        let log = Arc::default();
        if let Some(stdout) = child.stdout.take() {
            collect(stdout, &log);
        }
        if let Some(stderr) = child.stderr.take() {
            collect(stderr, &log);
        }
        Ok(Process {
            label: label.to_owned(),
            child,
            log,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it printed so far, on both streams, line by line.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for a line that holds `text` and returns it.
    ///
    /// # Errors
    ///
    /// When `deadline` (scaled) passes or the process exits first.
    pub fn wait_for_line(&mut self, text: &str, deadline: Duration) -> Result<String> {
        let what = format!("{} prints {text:?}", self.label);
        wait_until(deadline, &what, || {
            match self.log().into_iter().find(|line| line.contains(text)) {
                Some(line) => Ok(line),
                None => bail!("it printed:\n{}", self.tail()),
            }
        })
    }

    /// Sends `signal`.
    ///
    /// # Errors
    ///
    /// When the process is gone already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal)
            .with_context(|| format!("cannot signal {}", self.label))
    }

    /// Kills it and what it started at once (SIGKILL) and waits for its end.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            rustix::process::kill_process_group(Pid::from_child(&self.child), Signal::KILL)?;
        }
        self.child.wait()?;
        Ok(())
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    ///
    /// When it has not ended by `deadline` (scaled).
    pub fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(deadline)
    }

    /// Waits for the end.
    ///
    /// # Errors
    ///
    /// When it has not ended by `deadline` (scaled).
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(
                start.elapsed() < scaled(deadline),
                "{} still runs; it printed:\n{}",
                self.label,
                self.tail()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The exit status if it ended.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Resident set size in bytes, from `/proc/<pid>/status`.
    ///
    /// # Errors
    ///
    /// When the process is gone.
    pub fn resident_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let status =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let kilobytes: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().strip_suffix("kB"))
            .and_then(|number| number.trim().parse().ok())
            .with_context(|| format!("no VmRSS in {path}"))?;
        Ok(kilobytes * 1024)
    }

    fn tail(&self) -> String {
        let log = self.log();
        log[log.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("testnet: {} stays: {error:#}", self.label);
        }
        if thread::panicking() {
            eprintln!("--- last lines of {} ---\n{}", self.label, self.tail());
        }
    }
}

fn collect(stream: impl Read + Send + 'static, log: &Arc<Mutex<Vec<String>>>) {
    let log = Arc::clone(log);
    // Ends at end of file: not joined, because a grandchild may hold the pipe open.
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            log.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(line);
        }
    });
}

/// Has the kernel kill the child when the spawning thread ends, however it ends.
#[expect(unsafe_code, reason = "`pre_exec` runs between fork and exec")]
pub(crate) fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure makes one system call; it neither allocates nor takes locks.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
                .map_err(io::Error::from)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_process_is_dead() -> Result<()> {
        let mut command = Command::new("sleep");
        command.arg("600");
        let process = Process::spawn("sleep", command)?;
        let path = format!("/proc/{}", process.pid());
        assert!(std::fs::exists(&path)?);
        drop(process);
        assert!(!std::fs::exists(&path)?);
        Ok(())
    }

    #[test]
    fn output_is_collected_from_both_streams() -> Result<()> {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2"]);
        let mut process = Process::spawn("sh", command)?;
        process.wait_for_line("out", Duration::from_secs(5))?;
        process.wait_for_line("err", Duration::from_secs(5))?;
        assert!(process.wait(Duration::from_secs(5))?.success());
        Ok(())
    }

    #[test]
    fn a_failing_command_names_itself_and_its_complaint() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo broken pipe dream >&2; exit 3"]);
        let text = run(&mut command).expect_err("exits 3").to_string();
        assert!(
            text.contains("sh -c") && text.contains("broken pipe dream"),
            "{text}"
        );
    }
}
