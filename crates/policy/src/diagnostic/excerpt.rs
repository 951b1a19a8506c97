//! The marked excerpt of one diagnostic, drawn by miette.

use std::fmt::{Debug, Display, Formatter};
use std::ops::Range;

use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents,
    SourceCode, SourceSpan, SpanContents,
};

use super::{Diagnostic, Diagnostics, Severity};

/// Columns of the whole excerpt, and bytes of a line that is shown whole.
const WIDTH: usize = 100;
/// Of a longer line: bytes before the marked text, of the marked text and after it.
const BEFORE: usize = 60;
const MARKED: usize = 70;
const AFTER: usize = 40;

/// Appends the excerpt.
pub(super) fn render(out: &mut String, all: &Diagnostics, diagnostic: &Diagnostic, colours: bool) {
    let theme = if colours {
        GraphicalTheme::unicode()
    } else {
        GraphicalTheme::unicode_nocolor()
    };
    let handler = GraphicalReportHandler::new_themed(theme)
        .with_width(WIDTH)
        .with_links(false);
    let report = Report {
        diagnostic,
        excerpt: Excerpt::new(all, &diagnostic.span),
    };
    if handler.render_report(out, &report).is_err() {
        // Only a broken `Display` gets here; the message is worth more than its frame.
        out.push_str(&diagnostic.message);
    }
}

/// A few lines of the file around what is marked. Lines too long to be read are cut: a file may be
/// one single line.
struct Excerpt<'a> {
    all: &'a Diagnostics,
    /// What is shown.
    shown: Range<usize>,
    /// What is marked: within one line.
    marked: Range<usize>,
}

impl<'a> Excerpt<'a> {
    fn new(all: &'a Diagnostics, span: &Range<usize>) -> Self {
        let text = &*all.text;
        let line_start = text[..span.start].rfind('\n').map_or(0, |at| at + 1);
        let (line_end, next) = end_of_line(text, span.start);
        let end = span
            .end
            .min(line_end)
            .min(boundary(text, span.start + MARKED));
        let marked = span.start..end.max(span.start);
        let mut shown = line_start..line_end;
        if line_end - line_start > WIDTH {
            if marked.start - line_start > BEFORE {
                shown.start = boundary(text, marked.start - BEFORE);
            }
            shown.end = boundary(text, marked.end + AFTER).min(line_end);
        } else {
            // The lines before and after, if they are not too long either.
            let before = text[..line_start]
                .trim_end_matches(['\r', '\n'])
                .rfind('\n')
                .map_or(0, |at| at + 1);
            if line_start - before <= WIDTH {
                shown.start = before;
            }
            let (after, _) = end_of_line(text, next);
            if after - next <= WIDTH {
                shown.end = after;
            }
        }
        Self { all, shown, marked }
    }
}

/// Where the line around `at` ends, and where the next one begins. Its end is no part of it: what
/// is shown must not stop between the two bytes of one.
fn end_of_line(text: &str, at: usize) -> (usize, usize) {
    match text[at..].find('\n') {
        Some(length) => {
            let line = &text[at..at + length];
            let line = line.strip_suffix('\r').unwrap_or(line);
            (at + line.len(), at + length + 1)
        }
        None => (text.len(), text.len()),
    }
}

/// The last place before `at` where a character begins; the end if the text is shorter.
fn boundary(text: &str, at: usize) -> usize {
    text.floor_char_boundary(at)
}

impl SourceCode for Excerpt<'_> {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        lines_before: usize,
        lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        // Without lines around it, the place is asked for; else the excerpt.
        let range = if lines_before + lines_after == 0 {
            span.offset()..span.offset() + span.len()
        } else {
            self.shown.clone()
        };
        let data = self
            .all
            .text
            .get(range.clone())
            .ok_or(MietteError::OutOfBounds)?;
        let (line, column) = self.all.position(range.start);
        let span = SourceSpan::from(range);
        let lines = data.lines().count();
        let contents = MietteSpanContents::new_named(
            self.all.name.clone(),
            data.as_bytes(),
            span,
            line - 1,
            column - 1,
            lines,
        );
        Ok(Box::new(contents))
    }
}

struct Report<'a> {
    diagnostic: &'a Diagnostic,
    excerpt: Excerpt<'a>,
}

impl Debug for Report<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        Debug::fmt(self.diagnostic, f)
    }
}

impl Display for Report<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.diagnostic.message)
    }
}

impl std::error::Error for Report<'_> {}

impl miette::Diagnostic for Report<'_> {
    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.diagnostic.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn Display + 'a>> {
        let help = self.diagnostic.help.as_ref()?;
        Some(Box::new(help))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.excerpt)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let label = Some(self.diagnostic.label.clone()).filter(|label| !label.is_empty());
        let marked = self.excerpt.marked.clone();
        let span = LabeledSpan::new_primary_with_span(label, marked);
        Some(Box::new(std::iter::once(span)))
    }
}
