//! Edits of a policy file by the program. Comments, layout and trailing commas stay as they are.
//!
//! Members are named by their path from the top, `["groups", "group:ops"]`. Names of sections are
//! found in any case of letters, as the reader does; names that the author chose exactly.

use std::sync::Arc;

use jsonc_parser::cst::{CstArray, CstInputValue, CstObject, CstObjectProp, CstRootNode};
use serde_json::Value;

use crate::diagnostic::Diagnostics;
use crate::syntax;

/// Why a file was not edited.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EditError {
    /// The file is not HuJSON, so there is nothing to hold on to.
    #[error("the policy cannot be edited before it is repaired:\n{0}")]
    Syntax(#[source] Box<Diagnostics>),
    /// A path leads through something that has no members.
    #[error("{path} is not an object: edit the policy by hand")]
    NotAnObject {
        /// The path so far, with dots.
        path: String,
    },
    /// A list was expected.
    #[error("{path} is not a list: edit the policy by hand")]
    NotAList {
        /// The path, with dots.
        path: String,
    },
    /// Nothing of that name is there.
    #[error("the policy has no {path}")]
    NotFound {
        /// The path, with dots.
        path: String,
    },
}

/// Sets a member, and creates it and the objects around it where they are missing.
///
/// # Errors
///
/// The file is not HuJSON, or a value on the way is not an object.
pub fn set(text: &str, path: &[&str], value: &Value) -> Result<String, EditError> {
    let root = open(text)?;
    let (name, parents) = path.split_last().ok_or_else(|| not_found(path))?;
    let object = object(&root, parents)?;
    match member(&object, parents.len(), name) {
        Some(member) => member.set_value(input(value)),
        None => {
            object.append(name, input(value));
        }
    }
    finish(&root)
}

/// Removes a member.
///
/// # Errors
///
/// The file is not HuJSON, or there is no such member.
pub fn remove(text: &str, path: &[&str]) -> Result<String, EditError> {
    let root = open(text)?;
    find(&root, path)?.remove();
    finish(&root)
}

/// Appends an element to a list, and creates the list and the objects around it where they are
/// missing.
///
/// # Errors
///
/// The file is not HuJSON, or the path leads to something else than a list.
pub fn append(text: &str, path: &[&str], value: &Value) -> Result<String, EditError> {
    let root = open(text)?;
    let (name, parents) = path.split_last().ok_or_else(|| not_found(path))?;
    let object = object(&root, parents)?;
    match member(&object, parents.len(), name) {
        // Null is an empty list to the reader.
        Some(member) if is_null(&member) => {
            member.set_value(CstInputValue::Array(vec![input(value)]));
        }
        Some(member) => {
            list(&member, path)?.append(input(value));
        }
        None => {
            object.append(name, CstInputValue::Array(vec![input(value)]));
        }
    }
    finish(&root)
}

/// Removes all elements of a list that equal `value`.
///
/// # Errors
///
/// The file is not HuJSON, there is no such list, or no such element in it.
pub fn remove_element(text: &str, path: &[&str], value: &Value) -> Result<String, EditError> {
    let root = open(text)?;
    let list = list(&find(&root, path)?, path)?;
    let elements = list.elements().into_iter();
    let found: Vec<_> = elements
        .filter(|it| it.to_serde_value().as_ref() == Some(value))
        .collect();
    if found.is_empty() {
        let path = format!("{value} in {}", path.join("."));
        return Err(EditError::NotFound { path });
    }
    for element in found {
        element.remove();
    }
    finish(&root)
}

/// Parses with places for everything, blanks and comments included.
fn open(text: &str) -> Result<CstRootNode, EditError> {
    let refused = |error| {
        let diagnostics = Diagnostics::new("policy", Arc::from(text), vec![error]);
        EditError::Syntax(Box::new(diagnostics))
    };
    syntax::parse(text).map_err(refused)?;
    let root = CstRootNode::parse(text, &syntax::strict());
    root.map_err(|error| refused(syntax::refusal(&error)))
}

fn finish(root: &CstRootNode) -> Result<String, EditError> {
    let text = root.to_string();
    open(&text)?;
    Ok(text)
}

/// The object at a path; what is missing (or null, which says the same) is created.
fn object(root: &CstRootNode, path: &[&str]) -> Result<CstObject, EditError> {
    let mut object = root.object_value().ok_or_else(|| not_an_object(&[]))?;
    for (depth, name) in path.iter().enumerate() {
        let empty = CstInputValue::Object(Vec::new());
        let found = match member(&object, depth, name) {
            Some(member) => member,
            None => object.append(name, empty.clone()),
        };
        if is_null(&found) {
            found.set_value(empty);
        }
        object = found
            .object_value()
            .ok_or_else(|| not_an_object(&path[..=depth]))?;
    }
    Ok(object)
}

fn is_null(member: &CstObjectProp) -> bool {
    member
        .value()
        .is_some_and(|value| value.as_null_keyword().is_some())
}

/// The member at a path.
fn find(root: &CstRootNode, path: &[&str]) -> Result<CstObjectProp, EditError> {
    let mut object = root.object_value().ok_or_else(|| not_an_object(&[]))?;
    for (depth, name) in path.iter().enumerate() {
        let found = member(&object, depth, name).ok_or_else(|| not_found(&path[..=depth]))?;
        if depth + 1 == path.len() {
            return Ok(found);
        }
        object = found
            .object_value()
            .ok_or_else(|| not_an_object(&path[..=depth]))?;
    }
    Err(not_found(path))
}

/// A member by name: at the top the language fixes the names, below the author.
fn member(object: &CstObject, depth: usize, name: &str) -> Option<CstObjectProp> {
    let named = |it: &CstObjectProp| {
        it.decoded_name()
            .is_some_and(|found| found == name || depth == 0 && found.eq_ignore_ascii_case(name))
    };
    object.properties().into_iter().find(named)
}

fn list(member: &CstObjectProp, path: &[&str]) -> Result<CstArray, EditError> {
    member.array_value().ok_or_else(|| EditError::NotAList {
        path: path.join("."),
    })
}

fn not_found(path: &[&str]) -> EditError {
    EditError::NotFound {
        path: path.join("."),
    }
}

fn not_an_object(path: &[&str]) -> EditError {
    let path = if path.is_empty() {
        "the policy".to_owned()
    } else {
        path.join(".")
    };
    EditError::NotAnObject { path }
}

fn input(value: &Value) -> CstInputValue {
    match value {
        Value::Null => CstInputValue::Null,
        Value::Bool(value) => CstInputValue::Bool(*value),
        Value::Number(number) => CstInputValue::Number(number.to_string()),
        Value::String(text) => CstInputValue::String(text.clone()),
        Value::Array(elements) => CstInputValue::Array(elements.iter().map(input).collect()),
        Value::Object(members) => {
            let members = members
                .iter()
                .map(|(name, value)| (name.clone(), input(value)));
            CstInputValue::Object(members.collect())
        }
    }
}

#[cfg(test)]
mod tests;
