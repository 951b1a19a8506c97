//! Values whose shape the language does not fix: what applications are told.

use serde_json::value::RawValue;

use super::reader::Reader;
use crate::diagnostic::Cause;
use crate::syntax::{Json, Node};

impl<'n> Reader<'n> {
    /// A value as it was written, without comments. Nothing in it may be named twice.
    pub(super) fn raw(&mut self, node: &'n Node<'n>) -> Option<Box<RawValue>> {
        let before = self.errors();
        self.check_duplicates(node);
        if self.errors() > before {
            return None;
        }
        let mut text = String::new();
        write(&mut text, node);
        match RawValue::from_string(text) {
            Ok(raw) => Some(raw),
            Err(error) => {
                self.error(
                    Cause::Syntax,
                    &node.span,
                    format!("not JSON: {error}"),
                    "expected JSON",
                );
                None
            }
        }
    }

    /// Reports members of the same name, however deep.
    pub(super) fn check_duplicates(&mut self, node: &'n Node<'n>) {
        match &node.value {
            Json::Array(elements) => elements
                .iter()
                .for_each(|element| self.check_duplicates(element)),
            Json::Object(_) => {
                for member in self.map(node, "the object") {
                    self.check_duplicates(&member.node);
                }
            }
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
        }
    }
}

/// The value for serde.
pub(super) fn plain(node: &Node<'_>) -> serde_json::Value {
    let mut text = String::new();
    write(&mut text, node);
    // What `write` writes is JSON; a number beyond f64 is the only thing serde_json cannot hold.
    serde_json::from_str(&text).unwrap_or(serde_json::Value::Null)
}

/// Appends the value as compact JSON, numbers as they were written.
fn write(out: &mut String, node: &Node<'_>) {
    match &node.value {
        Json::Null => out.push_str("null"),
        Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Json::Number(text) => out.push_str(text),
        Json::String(text) => write_string(out, text),
        Json::Array(elements) => {
            out.push('[');
            for (index, element) in elements.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write(out, element);
            }
            out.push(']');
        }
        Json::Object(members) => {
            out.push('{');
            for (index, member) in members.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_string(out, &member.name);
                out.push(':');
                write(out, &member.node);
            }
            out.push('}');
        }
    }
}

fn write_string(out: &mut String, text: &str) {
    out.push_str(&serde_json::Value::from(text).to_string());
}
