//! Prometheus' text format, written straight: a scrape of a thousand peers is one string.

use std::fmt::{self, Display, Write as _};

/// What a family's values mean.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Goes up only, until the process ends.
    Counter,
    /// Is what it is now.
    Gauge,
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        })
    }
}

/// Series of one name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// What its values mean.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it says, in one line.
    pub help: &'static str,
}

/// A page under way.
#[derive(Debug, Default)]
pub(super) struct Page {
    text: String,
}

impl Page {
    /// Begins a family, whose samples follow; without any it is not shown.
    pub(super) fn family(&mut self, family: &'static Family) -> Samples<'_> {
        Samples {
            page: self,
            family,
            begun: false,
        }
    }

    /// Adds a family of one sample without labels.
    pub(super) fn single(&mut self, family: &'static Family, value: impl Display) {
        self.family(family).add(&[], value);
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

/// The samples of one family.
pub(super) struct Samples<'a> {
    page: &'a mut Page,
    family: &'static Family,
    begun: bool,
}

impl Samples<'_> {
    /// Adds a sample, with a value for each label. No two may have the same ones.
    pub(super) fn add(&mut self, labels: &[&str], value: impl Display) {
        let Family {
            name,
            kind,
            labels: names,
            help,
        } = self.family;
        debug_assert_eq!(labels.len(), names.len(), "{name}");
        let text = &mut self.page.text;
        let written = (|| {
            if !self.begun {
                writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
            }
            text.write_str(name)?;
            for (at, (label, value)) in names.iter().zip(labels).enumerate() {
                write!(text, "{}{label}=\"", if at == 0 { '{' } else { ',' })?;
                escape(text, value)?;
                text.write_char('"')?;
            }
            let close = if names.is_empty() { "" } else { "}" };
            writeln!(text, "{close} {value}")
        })();
        debug_assert!(written.is_ok(), "strings take what they are given");
        self.begun = true;
    }
}

fn escape(text: &mut String, value: &str) -> fmt::Result {
    for character in value.chars() {
        match character {
            '\\' => text.write_str("\\\\")?,
            '"' => text.write_str("\\\"")?,
            '\n' => text.write_str("\\n")?,
            other => text.write_char(other)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILY: Family = Family {
        name: "some_total",
        kind: Kind::Counter,
        labels: &["who", "what"],
        help: "Some.",
    };

    #[test]
    fn families_are_introduced_once_and_labels_are_escaped() {
        let mut page = Page::default();
        let mut samples = page.family(&FAMILY);
        samples.add(&["a\"b\\c\nd", ""], 1);
        samples.add(&["e", "f"], 2.5);
        let expected = "# HELP some_total Some.\n# TYPE some_total counter\n\
                        some_total{who=\"a\\\"b\\\\c\\nd\",what=\"\"} 1\n\
                        some_total{who=\"e\",what=\"f\"} 2.5\n";
        assert_eq!(page.into_text(), expected);
    }

    #[test]
    fn a_family_without_samples_is_not_shown() {
        let mut page = Page::default();
        page.family(&FAMILY);
        assert_eq!(page.into_text(), "");
    }
}
