//! HuJSON with places: the document tree of a policy file. The only user of the parser crate, next
//! to [`crate::edit`].
//!
//! HuJSON is JSON with comments and trailing commas, nothing looser. What the parser crate lets
//! through all the same (control characters in strings, blanks that JSON does not know, a byte order
//! mark) and what could exhaust us (size, depth) is refused in one pass before it runs.

use std::ops::Range;

use jsonc_parser::ast::Value;
use jsonc_parser::common::Ranged;
use jsonc_parser::errors::{ParseError, ParseErrorKind};
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};

use crate::diagnostic::{Cause, Diagnostic};

/// Largest file in bytes. The largest policies in the wild are some hundred KiB.
pub(crate) const MAX_BYTES: usize = 4 << 20;
/// Deepest nesting of brackets; the language itself needs five, values of capabilities some more.
const MAX_DEPTH: usize = 64;

/// A value and where it stands.
#[derive(Debug)]
pub(crate) struct Node<'t> {
    /// Bytes, quotes and brackets included.
    pub(crate) span: Range<usize>,
    pub(crate) value: Json<'t>,
}

/// A JSON value.
#[derive(Debug)]
pub(crate) enum Json<'t> {
    Null,
    Bool(bool),
    /// As it was written.
    Number(&'t str),
    /// Without escapes.
    String(String),
    Array(Vec<Node<'t>>),
    /// In the order of the file, duplicates included.
    Object(Vec<Member<'t>>),
}

/// A name and its value.
#[derive(Debug)]
pub(crate) struct Member<'t> {
    pub(crate) name: String,
    /// Bytes of the name, quotes included.
    pub(crate) name_span: Range<usize>,
    pub(crate) node: Node<'t>,
}

impl Node<'_> {
    /// What it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Json::Null => "null",
            Json::Bool(_) => "true or false",
            Json::Number(_) => "a number",
            Json::String(_) => "a string",
            Json::Array(_) => "a list",
            Json::Object(_) => "an object",
        }
    }
}

/// The switches that make the parser crate strict.
pub(crate) fn strict() -> ParseOptions {
    ParseOptions {
        allow_comments: true,
        allow_trailing_commas: true,
        allow_loose_object_property_names: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    }
}

/// Parses a document.
///
/// # Errors
///
/// The first place where it stops being HuJSON; behind it nothing can be said with certainty.
pub(crate) fn parse(text: &str) -> Result<Node<'_>, Diagnostic> {
    check(text)?;
    let parsed = match parse_to_ast(text, &CollectOptions::default(), &strict()) {
        Ok(parsed) => parsed.value,
        Err(error) => return Err(refusal(&error)),
    };
    parsed.map(node).ok_or_else(|| {
        Diagnostic::error(Cause::Syntax, 0..0, "the file is empty", "expected {")
            .help("the smallest policy is {}: every node may reach every node")
    })
}

fn node(value: Value<'_>) -> Node<'_> {
    let range = value.range();
    let value = match value {
        Value::NullKeyword(_) => Json::Null,
        Value::BooleanLit(it) => Json::Bool(it.value),
        Value::NumberLit(it) => Json::Number(it.value),
        Value::StringLit(it) => Json::String(it.value.into_owned()),
        Value::Array(it) => Json::Array(it.elements.into_iter().map(node).collect()),
        Value::Object(it) => Json::Object(it.properties.into_iter().map(member).collect()),
    };
    Node {
        span: range.start..range.end,
        value,
    }
}

fn member(property: jsonc_parser::ast::ObjectProp<'_>) -> Member<'_> {
    let range = property.name.range();
    Member {
        name_span: range.start..range.end,
        name: property.name.into_string(),
        node: node(property.value),
    }
}

/// Refuses what the parser crate would let through or choke on.
fn check(text: &str) -> Result<(), Diagnostic> {
    if text.len() > MAX_BYTES {
        let message = format!(
            "the file has {} bytes, more than the {MAX_BYTES} that a policy may have",
            text.len()
        );
        return Err(Diagnostic::error(Cause::TooLarge, 0..0, message, "")
            .help("put repeated lists of users and addresses into groups and ipsets"));
    }
    if text.starts_with('\u{feff}') {
        let message = "the file starts with a byte order mark";
        return Err(
            Diagnostic::error(Cause::Syntax, 0..3, message, "invisible here")
                .help("save it as UTF-8 without byte order mark"),
        );
    }
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0, 0_usize);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = check_string(text, at)?,
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                at += bytes[at..]
                    .iter()
                    .position(|byte| *byte == b'\n')
                    .unwrap_or(bytes.len() - at);
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                // An unterminated comment is the parser's to report.
                at = text[at + 2..]
                    .find("*/")
                    .map_or(bytes.len(), |end| at + 2 + end + 1);
            }
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    let message = format!("brackets are nested deeper than {MAX_DEPTH} levels");
                    return Err(Diagnostic::error(
                        Cause::TooDeep,
                        at..at + 1,
                        message,
                        "one too many",
                    ));
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b' ' | b'\t' | b'\r' | b'\n' => {}
            byte if byte.is_ascii_graphic() => {}
            _ => {
                let len = text[at..].chars().next().map_or(1, char::len_utf8);
                let message = "a character that may only stand in strings and comments";
                return Err(Diagnostic::error(
                    Cause::Syntax,
                    at..at + len,
                    message,
                    "not HuJSON",
                ));
            }
        }
        at += 1;
    }
    Ok(())
}

/// Returns where the closing quote stands, or the end of the text.
fn check_string(text: &str, start: usize) -> Result<usize, Diagnostic> {
    let bytes = text.as_bytes();
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return Ok(at),
            b'\\' => at += 1,
            b'\n' | b'\r' => {
                let message = "a string does not end on its line";
                return Err(Diagnostic::error(
                    Cause::Syntax,
                    start..at,
                    message,
                    "expected \" before the end of the line",
                ));
            }
            byte if byte < b' ' => {
                let message = "a control character in a string";
                return Err(Diagnostic::error(
                    Cause::Syntax,
                    at..at + 1,
                    message,
                    "write it as an escape",
                )
                .help(format!("a tab is \\t, others \\u00XX: here \\u{byte:04x}")));
            }
            _ => {}
        }
        at += 1;
    }
    Ok(bytes.len())
}

/// Words for the parser crate's errors.
pub(crate) fn refusal(error: &ParseError) -> Diagnostic {
    use ParseErrorKind as Kind;
    let range = error.range();
    let span = range.start..range.end;
    let (message, label, help): (&str, &str, Option<&str>) = match error.kind() {
        Kind::ExpectedComma => ("a comma is missing", "expected , here", None),
        Kind::ExpectedColonAfterObjectKey => ("a colon is missing", "expected : before this", None),
        Kind::ExpectedObjectValue => ("a value is missing", "expected a value", None),
        Kind::ExpectedStringObjectProperty | Kind::UnexpectedWord => (
            "a word without quotes",
            "expected a string in double quotes",
            None,
        ),
        Kind::SingleQuotedStringsNotAllowed => {
            ("a string in single quotes", "expected double quotes", None)
        }
        Kind::UnterminatedArray => ("a list does not end", "this [ has no ]", None),
        Kind::UnterminatedObject => ("an object does not end", "this { has no }", None),
        Kind::UnterminatedCommentBlock => ("a comment does not end", "this /* has no */", None),
        Kind::MultipleRootJsonValues => (
            "text behind the end of the policy",
            "expected the end of the file",
            Some("is there one } too many above?"),
        ),
        Kind::UnexpectedComma => (
            "a comma without a value before it",
            "expected a value",
            None,
        ),
        Kind::UnexpectedColon => (
            "a colon in the wrong place",
            "expected a value or a comma",
            None,
        ),
        Kind::UnexpectedCloseBrace => ("a } that closes nothing", "expected a value", None),
        Kind::UnexpectedCloseBracket => ("a ] that closes nothing", "expected a value", None),
        Kind::UnexpectedTokenInObject => (
            "not the name of a member",
            "expected a string in double quotes or }",
            None,
        ),
        Kind::NestingDepthExceeded => ("brackets are nested too deeply", "one too many", None),
        Kind::String(_) => (
            "not a string that JSON knows",
            "here",
            Some("escapes are \\\" \\\\ \\/ \\b \\f \\n \\r \\t and \\uXXXX"),
        ),
        _ => (
            "not a number or word that JSON knows",
            "expected a JSON value",
            Some("values are strings in double quotes, numbers, true, false, null, [ ] and { }"),
        ),
    };
    let diagnostic = Diagnostic::error(Cause::Syntax, span, message, label);
    match help {
        Some(help) => diagnostic.help(help),
        None => diagnostic,
    }
}
