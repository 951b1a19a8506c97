//! Targets of `keys`.

use std::{fmt::Display, str::FromStr};

use keys::{ChallengePublic, DiscoPublic, MachinePrivate, MachinePublic, NodePublic};

/// Key texts: what parses is written again in lower case.
pub fn key_text(data: &[u8]) {
    fn public<K: FromStr + Display>(text: &str) {
        if let Ok(key) = text.parse::<K>() {
            assert!(key.to_string().eq_ignore_ascii_case(text));
        }
    }

    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    public::<MachinePublic>(text);
    public::<NodePublic>(text);
    public::<DiscoPublic>(text);
    public::<ChallengePublic>(text);
    if let Ok(key) = text.parse::<MachinePrivate>() {
        assert_eq!(key.to_text().len(), text.len());
    }
}
