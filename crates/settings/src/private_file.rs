//! Files that only their owner reads, and that a crash never leaves half written: keys, state.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;

/// Makes a folder for private files, and those above it (0700); leaves what is there as it is.
///
/// # Errors
///
/// What the system answered.
pub fn create_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(path)
}

/// Replaces the file at `path` (0600) by `content`: a crash leaves the old one or the new, whole.
///
/// # Errors
///
/// What the system answered; the file is then as it was.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    write_with(path, |file| file.write_all(content))
}

/// Like [`write`], for content that `fill` produces piece by piece.
///
/// # Errors
///
/// As there, and what `fill` answers.
pub fn write_with(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let draft = draft_of(path);
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(FILE_MODE)
        .open(&draft)?;
    // A draft that a crash left keeps its mode, whatever that is.
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    let mut writer = BufWriter::new(file);
    fill(&mut writer)?;
    writer.flush()?;
    writer.get_ref().sync_all()?;
    fs::rename(&draft, path)?;
    // The new name is on disk only once the folder is.
    File::open(folder_of(path))?.sync_all()
}

/// Where the new content grows: in the same folder, so that it can be renamed.
fn draft_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    PathBuf::from(name)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_is_private_and_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/b");
        create_folder(&state).unwrap();
        create_folder(&state).unwrap();
        let path = state.join("secret");

        write(&path, b"a long first secret").unwrap();
        write(&path, b"second").unwrap();

        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!((mode(&state), mode(&path)), (0o700, 0o600));
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
    }

    #[test]
    fn a_draft_that_a_crash_left_does_not_matter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let draft = folder.path().join("secret.new");
        fs::write(&draft, "half a secret, and readable by all").unwrap();
        fs::set_permissions(&draft, Permissions::from_mode(0o644)).unwrap();

        write(&path, b"whole").unwrap();

        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        write(&path, b"old").unwrap();

        let broken = write_with(&path, |file| {
            file.write_all(b"ne")?;
            Err(io::Error::other("no more"))
        });

        assert_eq!(broken.unwrap_err().to_string(), "no more");
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn files_of_one_stem_have_drafts_of_their_own() {
        assert_ne!(
            draft_of(Path::new("relay.crt")),
            draft_of(Path::new("relay.key"))
        );
        assert_eq!(folder_of(Path::new("relay.crt")), Path::new("."));
    }
}
