//! Who is at the other end of the admin socket.

use tokio::net::UnixStream;

/// Who asks: a user of this host, by name if it has one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Author(pub(super) String);

impl Author {
    /// The user whose process opened the connection, as the kernel knows it.
    pub(super) fn of(socket: &UnixStream) -> Self {
        let Ok(credentials) = socket.peer_cred() else {
            return Self("unknown".to_owned());
        };
        let uid = credentials.uid();
        // Users of a directory service are in no file; their number is as good.
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        Self(name(&users, uid).unwrap_or_else(|| format!("uid {uid}")))
    }
}

/// The first user with this number in the text of `passwd(5)`.
fn name(users: &str, uid: u32) -> Option<String> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let number = fields.nth(1)?.parse::<u32>().ok()?;
        (number == uid).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_number_and_odd_lines_are_passed_over() {
        let users = "root:x:0:0:root:/root:/bin/sh\n# a note\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(name(users, 1000).as_deref(), Some("ann"));
        assert_eq!(name(users, 7), None);
    }

    #[tokio::test]
    async fn a_connection_of_our_own_is_ours() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let author = Author::of(&ours);
        assert_ne!(author, Author("unknown".to_owned()));
    }
}
