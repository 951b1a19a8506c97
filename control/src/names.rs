//! Names: from what a machine calls itself to a DNS label that is unique in the tailnet.

/// Longest DNS label, bytes (RFC 1035).
const MAX_LABEL: usize = 63;
/// Label of a machine whose host name holds nothing usable.
const FALLBACK: &str = "node";

/// Turns a host name into a DNS label (protocol digest section 9): strips local suffixes, maps
/// separators to `-`, drops everything else outside `[a-z0-9-]`.
#[must_use]
pub fn label(hostname: &str) -> String {
    let lower = hostname.to_lowercase();
    let stem = [".local", ".localdomain", ".lan"]
        .iter()
        .find_map(|suffix| lower.strip_suffix(suffix))
        .unwrap_or(&lower);
    let mapped: String = stem
        .chars()
        .map(|c| {
            if matches!(c, ' ' | '.' | '@' | '_') {
                '-'
            } else {
                c
            }
        })
        .filter(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'))
        .take(MAX_LABEL)
        .collect();
    let trimmed = mapped.trim_matches('-');
    if trimmed.is_empty() {
        FALLBACK.to_owned()
    } else {
        trimmed.to_owned()
    }
}

/// Is `text` a label that an administrator may give a node?
#[must_use]
pub fn is_label(text: &str) -> bool {
    !text.is_empty() && label(text) == text
}

/// Returns `base`, or `base-1`, `base-2`, … : the first that is not `taken`.
#[must_use]
pub fn unique(base: &str, taken: impl Fn(&str) -> bool) -> String {
    if !taken(base) {
        return base.to_owned();
    }
    let mut number: u64 = 1;
    loop {
        let suffix = format!("-{number}");
        let stem = &base[..base.len().min(MAX_LABEL - suffix.len())];
        let candidate = format!("{}{suffix}", stem.trim_end_matches('-'));
        if !taken(&candidate) {
            return candidate;
        }
        number += 1;
    }
}

/// Is `tag` a tag as policies and keys spell it: `tag:` and a word that starts with a letter?
#[must_use]
pub fn is_tag(tag: &str) -> bool {
    tag.strip_prefix("tag:").is_some_and(|word| {
        word.len() <= MAX_LABEL
            && word.starts_with(|c: char| c.is_ascii_alphabetic())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    })
}

/// Is `name` a user name: short, printable, without blanks?
#[must_use]
pub fn is_user(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@' | '+'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_become_labels() {
        for (hostname, expected) in [
            ("Work Station.local", "work-station"),
            ("db_1.example.com", "db-1-example-com"),
            ("Zoë's MacBook", "zos-macbook"),
            ("---", "node"),
            ("", "node"),
            ("日本", "node"),
        ] {
            assert_eq!(label(hostname), expected, "{hostname}");
        }
        assert_eq!(label(&"a".repeat(100)).len(), 63);
    }

    #[test]
    fn a_taken_label_gets_the_next_free_number() {
        assert_eq!(
            unique("web", |name| name == "web" || name == "web-1"),
            "web-2"
        );
        let long = "a".repeat(63);
        let other = unique(&long, |name| name == long);
        assert_eq!(other.len(), 63);
        assert!(other.ends_with("-1"));
    }

    #[test]
    fn tags_and_users_are_checked() {
        assert!(is_tag("tag:web-1"));
        assert!(!is_tag("tag:1web") && !is_tag("web") && !is_tag("tag:"));
        assert!(is_user("ann@example.com"));
        assert!(!is_user("a b") && !is_user(""));
    }
}
