//! `tagOwners`: who may give a tag to a node.

use std::collections::{BTreeMap, BTreeSet};

use super::Located;
use super::reader::{Fields, Reader};
use super::selector::{Position, Selector};
use crate::diagnostic::Cause;

type Owners = BTreeMap<String, Vec<Located<Selector>>>;

impl<'n> Reader<'n> {
    /// `tagOwners`
    pub(super) fn tag_owners(&mut self, top: &Fields<'n>) -> Owners {
        let mut tags = Owners::new();
        let Some(node) = top.get("tagOwners") else {
            return tags;
        };
        for member in self.map(node, "tagOwners") {
            let name = self.defined_name(member, "tag", true);
            let owners = self.texts(Some(&member.node), name.value);
            tags.insert(
                name.value.to_owned(),
                self.selectors(&owners, Position::Owner),
            );
        }
        self.check_cycles(&tags);
        tags
    }

    /// A tag may own itself: nodes that have it may pass it on. Several tags that own each other say
    /// nothing that one owner would not say, and hide who owns them.
    fn check_cycles(&mut self, tags: &Owners) {
        let mut done = BTreeSet::new();
        for tag in tags.keys() {
            self.follow_owners(tags, tag, &mut done);
        }
    }

    /// Walks from a tag to its owners and theirs, and reports each way back. Without recursion:
    /// chains may be as long as the file.
    fn follow_owners<'t>(&mut self, tags: &'t Owners, tag: &'t str, done: &mut BTreeSet<&'t str>) {
        if !done.insert(tag) {
            return;
        }
        // The way here, each step with the owners still to be followed.
        let mut way = vec![(tag, tags[tag].iter())];
        let mut on_way = BTreeSet::from([tag]);
        while let Some((at, owners)) = way.last_mut() {
            let at = *at;
            let Some(owner) = owners.next() else {
                way.pop();
                on_way.remove(at);
                continue;
            };
            let Selector::Tag(next) = &owner.value else {
                continue;
            };
            if on_way.contains(next.as_str()) {
                if next != at {
                    let start = way.iter().rposition(|(name, _)| name == next);
                    let names = way[start.unwrap_or(0)..].iter().map(|(name, _)| *name);
                    self.cycle(owner, &names.collect::<Vec<_>>());
                    if !self.suggests() {
                        // Looking back over a long way for each of many cycles takes long.
                        return;
                    }
                }
            } else if let Some((next, owners)) = tags.get_key_value(next)
                && done.insert(next)
            {
                on_way.insert(next);
                way.push((next, owners.iter()));
            }
        }
    }

    /// `cycle`: every tag is owned by the next one, the last one by the first.
    fn cycle(&mut self, closing: &Located<Selector>, cycle: &[&str]) {
        const SHOWN: usize = 5;
        let mut tags = cycle[..cycle.len().min(SHOWN)].join(" is owned by ");
        if cycle.len() > SHOWN {
            tags.push_str(" is owned by …");
        }
        let message = format!("tags own each other: {tags} is owned by {}", cycle[0]);
        let help = "name users or groups as owners; a tag may own itself";
        let label = "leads back to where it started";
        self.error_help(Cause::TagOwnerCycle, &closing.span, message, label, help);
    }
}
