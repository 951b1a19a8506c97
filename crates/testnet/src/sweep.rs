//! Removes what killed processes of this crate left behind.

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::{env, fs, io};

use anyhow::Result;

use crate::folder::PREFIX;
use crate::process::run;

/// Removes the namespaces and folders whose names carry the id of a process that is gone.
///
/// Sweeps once per process: its own names are never orphans.
///
/// # Errors
///
/// When a leftover cannot be removed.
pub fn sweep() -> Result<()> {
    static SWEPT: Mutex<bool> = Mutex::new(false);
    let mut swept = SWEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if *swept {
        return Ok(());
    }
    let namespaces = Path::new("/run/netns");
    for name in orphans(namespaces)? {
        let removed = remove_namespace(&name);
        gone(&namespaces.join(&name), removed)?;
    }
    let temporary = env::temp_dir();
    for name in orphans(&temporary)? {
        let path = temporary.join(name);
        let removed = fs::remove_dir_all(&path).map_err(Into::into);
        gone(&path, removed)?;
    }
    *swept = true;
    Ok(())
}

fn remove_namespace(name: &str) -> Result<()> {
    for pid in run(Command::new("ip").args(["netns", "pids", name]))?.split_whitespace() {
        run(Command::new("kill").args(["-9", pid]))?;
    }
    run(Command::new("ip").args(["netns", "del", name])).map(drop)
}

/// Forgives an error where the thing is gone all the same: another process swept it first.
fn gone(path: &Path, removed: Result<()>) -> Result<()> {
    if path.exists() { removed } else { Ok(()) }
}

/// Entries of `folder` that are ours and whose process is dead.
fn orphans(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names
        .filter(|name| owner(name).is_some_and(|pid| !is_alive(pid)))
        .collect())
}

/// The process id in `tr<pid>-<label>`.
fn owner(name: &str) -> Option<u32> {
    let (pid, _label) = name.strip_prefix(PREFIX)?.split_once('-')?;
    pid.parse().ok()
}

fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_carry_an_owner() {
        assert_eq!(owner("tr123-alice"), Some(123));
        assert_eq!(owner("transfer-1"), None);
        assert_eq!(owner("tr-alice"), None);
        assert_eq!(owner("blue"), None);
    }
}
