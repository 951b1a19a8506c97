//! Tags: how they are written, and who may give them.

use control_proto::tailcfg::RegisterRequest;

use super::{Control, ServiceError};
use crate::model::User;
use crate::names;

impl Control {
    /// Tags that an administrator gives. A policy with `tagOwners` knows them all, so that a typing
    /// error does not make a node that no rule speaks of.
    pub(super) fn parse_tags(&self, tags: &[String]) -> Result<Vec<String>, ServiceError> {
        let tags = parse_tags(tags)?;
        match self.unknown_tag(&tags) {
            None => Ok(tags),
            Some(unknown) => Err(ServiceError::Invalid(format!(
                "the policy does not know {unknown}: add it to tagOwners (`tailrace-control policy \
                 get`), or check the spelling"
            ))),
        }
    }

    /// The first tag that the policy in force has no owners for, if it has any for other tags.
    pub(super) fn unknown_tag<'a>(&self, tags: &'a [String]) -> Option<&'a String> {
        let policy = self.engine.policy();
        let owners = &policy.tag_owners;
        let unknown = |tag: &&String| !owners.is_empty() && !owners.contains_key(*tag);
        tags.iter().find(unknown)
    }

    /// The tags that a node asks for, as far as anybody could give them; else why not.
    pub(super) fn wanted_tags(&self, request: &RegisterRequest) -> Result<Vec<String>, String> {
        let asked = request
            .hostinfo
            .as_ref()
            .map_or(&[][..], |host| &host.request_tags);
        let policy = self.engine.policy();
        let unknown = |tag: &&String| !policy.tag_owners.contains_key(*tag);
        let unknown: Vec<_> = asked.iter().filter(unknown).collect();
        if unknown.is_empty() {
            let mut tags = asked.to_vec();
            tags.sort();
            tags.dedup();
            return Ok(tags);
        }
        let named = brief(unknown.into_iter());
        Err(if policy.tag_owners.is_empty() {
            format!(
                "the requested tags {named} are not permitted: leave out --advertise-tags and use an \
                 auth key made with `tailrace-control keys create --tags`, or have an administrator \
                 run `tailrace-control nodes tag`"
            )
        } else {
            format!(
                "the requested tags {named} are not permitted: the tagOwners of the policy do not \
                 have them"
            )
        })
    }

    /// May this user give a node these tags? Else why not.
    pub(super) fn may_tag(&self, user: &User, tags: &[String]) -> Result<(), String> {
        let refused: Vec<_> = self.engine.with_network(|network| {
            let allowed = |tag: &&String| network.may_tag(user.id, &[], tag);
            tags.iter().filter(|tag| !allowed(tag)).collect()
        });
        if refused.is_empty() {
            return Ok(());
        }
        Err(format!(
            "the requested tags {} are not permitted: the tagOwners of the policy do not name {} \
             as their owner",
            brief(refused.into_iter()),
            user.name
        ))
    }
}

/// A list for a message, however much a node sent.
fn brief<'a>(tags: impl Iterator<Item = &'a String>) -> String {
    let all: Vec<&str> = tags.map(String::as_str).collect();
    all.join(", ").chars().take(200).collect()
}

/// Accepts `tag:a` and `a`; sorted, each once.
fn parse_tags(tags: &[String]) -> Result<Vec<String>, ServiceError> {
    let mut parsed = Vec::with_capacity(tags.len());
    for text in tags
        .iter()
        .map(|tag| tag.trim())
        .filter(|tag| !tag.is_empty())
    {
        let tag = if text.starts_with("tag:") {
            text.to_owned()
        } else {
            format!("tag:{text}")
        };
        if !names::is_tag(&tag) {
            return Err(ServiceError::Invalid(format!(
                "{text:?} is not a tag: use letters, digits and -, a letter first"
            )));
        }
        parsed.push(tag);
    }
    parsed.sort();
    parsed.dedup();
    Ok(parsed)
}
