//! Errors for people: [`error_text`].

use std::error::Error;

/// Returns the error with its causes in one line; a cause that the text already tells is left out.
pub(crate) fn error_text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{message}")]
    struct Outer {
        message: &'static str,
        source: io::Error,
    }

    #[test]
    fn causes_follow_in_one_line_and_are_told_once() {
        let text = |message| {
            error_text(&Outer {
                message,
                source: io::Error::other("no\nroom"),
            })
        };
        assert_eq!(text("cannot write"), "cannot write: no room");
        assert_eq!(text("cannot write (no\nroom)"), "cannot write (no room)");
    }
}
