//! QEMU without KVM: slow, but it runs everywhere, containers included.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{BOOTED, Clock, DONE};
use crate::setup::Kernel;

/// Time to the first line of our init; 10 s are usual, counting instructions takes longer.
const BOOT: Duration = Duration::from_secs(300);
/// Time for all steps.
const LIMIT: Duration = Duration::from_secs(45 * 60);

/// Boots the kernel and returns what the console printed until the machine ended or had to be.
///
/// # Errors
///
/// When QEMU cannot start.
pub(crate) fn boot(kernel: &Kernel, archive: &Path, clock: Clock) -> Result<Vec<String>> {
    let mut qemu = Command::new("qemu-system-x86_64");
    match clock {
        Clock::Host => qemu.args(["-accel", "tcg,thread=multi", "-smp", "2"]),
        // 2^2 ns an instruction; an idle processor goes straight to its next timer.
        Clock::Instructions => qemu
            .args(["-accel", "tcg,thread=single", "-smp", "1"])
            .args(["-icount", "shift=2,sleep=off"]),
    };
    qemu
        // With cx16 a guest once died of a double fault on an emulated cmpxchg16b; the other four
        // are not emulated at all.
        .args([
            "-cpu",
            "Haswell-noTSX,-cx16,-pcid,-x2apic,-tsc-deadline,-invpcid",
            "-m",
            "3G",
        ])
        .args([
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
        ])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(archive)
        .args(["-append", "console=ttyS0 panic=-1 quiet"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let mut machine = Machine(qemu.spawn().context("cannot run qemu-system-x86_64")?);
    let console = machine.0.stdout.take().context("no console")?;

    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let line = plain(&String::from_utf8_lossy(&line));
            if sender.send(line).is_err() {
                break;
            }
        }
    });

    let start = Instant::now();
    let mut printed = Vec::new();
    let mut booted = false;
    loop {
        let limit = if booted { LIMIT } else { BOOT };
        match lines.recv_timeout(limit.saturating_sub(start.elapsed())) {
            Ok(line) => {
                // Test results as progress; all the rest only if something fails.
                if line.starts_with("=== ") || line.starts_with("test ") {
                    eprintln!("  vm {} | {line}", kernel.name);
                }
                booted |= line.starts_with(BOOTED);
                let done = line.starts_with(DONE);
                printed.push(line);
                if done {
                    return Ok(printed);
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(printed),
        }
    }
}

/// Without carriage returns and escape sequences.
fn plain(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\r' => {}
            '\x1b' => {
                // CSI sequences end with a letter.
                let _sequence = characters.by_ref().find(char::is_ascii_alphabetic);
            }
            other => text.push(other),
        }
    }
    text
}

/// Ends the machine on every way out.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill(); // fails only if it has ended already
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn the_console_is_stripped_of_terminal_control() {
        assert_eq!(plain("\x1b[2J\x1b[0;1mtest ok\r"), "test ok");
    }
}
