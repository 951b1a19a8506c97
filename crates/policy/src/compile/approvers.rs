//! What a policy approves by itself: advertised routes (control.md 8.7) and tags.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::identity::Identity;
use crate::file::{Located, Policy, Selector};
use crate::tailnet::{EXIT_ROUTES, Role};

/// Of `advertised`, in their order, what is approved for a node of this identity. Exit routes are
/// approved by `exitNode` alone: 0.0.0.0/0 among `routes` means subnets of it.
pub(crate) fn auto_approved(
    policy: &Policy,
    identity: &Identity<'_>,
    advertised: &[IpNet],
) -> Vec<IpNet> {
    let is_exit = |route: &IpNet| EXIT_ROUTES.contains(route);
    // Half an exit node would carry one family and leak the other.
    let exit = EXIT_ROUTES.iter().all(|route| advertised.contains(route))
        && any(policy, identity, &policy.exit_approvers);
    advertised
        .iter()
        .filter(|route| {
            if is_exit(route) {
                exit
            } else {
                approves_route(policy, identity, route)
            }
        })
        .copied()
        .collect()
}

fn approves_route(policy: &Policy, identity: &Identity<'_>, route: &IpNet) -> bool {
    policy
        .route_approvers
        .iter()
        .any(|(approved, approvers)| approved.contains(route) && any(policy, identity, approvers))
}

/// May `identity`, a user, give a node `tag`? The owners of a tag may, and those of the tags that
/// own it; so may whoever acts for a node or key that has one of them (`tagged_as`), and
/// administrators every tag. A tag that `tagOwners` lacks is nobody's.
pub(crate) fn may_tag(
    policy: &Policy,
    identity: &Identity<'_>,
    tagged_as: &[String],
    tag: &str,
) -> bool {
    if !policy.tag_owners.contains_key(tag) {
        return false;
    }
    let administers = identity.user().is_some_and(|user| match user.role {
        Role::Owner | Role::Admin | Role::NetworkAdmin => true,
        Role::ItAdmin | Role::BillingAdmin | Role::Auditor | Role::Member => false,
    });
    if administers {
        return true;
    }
    // Tags may own each other in a circle: each is looked at once.
    let mut seen = BTreeSet::from([tag]);
    let mut pending = vec![tag];
    while let Some(tag) = pending.pop() {
        if tagged_as.iter().any(|it| it == tag) {
            return true;
        }
        let owners = policy.tag_owners.get(tag).map_or(&[][..], Vec::as_slice);
        if any(policy, identity, owners) {
            return true;
        }
        for owner in owners {
            if let Selector::Tag(owner) = &owner.value
                && seen.insert(owner)
            {
                pending.push(owner);
            }
        }
    }
    false
}

/// Is somebody among these?
fn any(policy: &Policy, identity: &Identity<'_>, selectors: &[Located<Selector>]) -> bool {
    selectors
        .iter()
        .any(|selector| !identity.covered_by(policy, &selector.value).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{company, node, users};

    /// What a node of `owner` gets approved; `owner` as in [`node`].
    fn approved(policy: &Policy, owner: &str, advertised: &[&str]) -> Vec<String> {
        let (users, node) = (users(), node(1, "router", owner));
        let find = |id| users.iter().find(|user| user.id == id);
        let identity = Identity::of_owner(policy, &node.owner, find);
        let advertised: Vec<IpNet> = advertised.iter().map(|it| it.parse().unwrap()).collect();
        let approved = auto_approved(policy, &identity, &advertised);
        approved.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn routes_within_an_approved_prefix_are_approved_for_its_approvers() {
        let policy = company(
            r#""autoApprovers": {"routes": {"10.0.0.0/8": ["tag:router", "group:dev"], "fd00::/8": ["carol@example.com"]}}"#,
        );
        let advertised = [
            "10.1.0.0/16",
            "10.0.0.0/8",
            "11.0.0.0/8",
            "0.0.0.0/1",
            "fd12::/48",
        ];
        assert_eq!(
            approved(&policy, "tag:router", &advertised),
            ["10.1.0.0/16", "10.0.0.0/8"]
        );
        assert_eq!(
            approved(&policy, "2", &advertised),
            ["10.1.0.0/16", "10.0.0.0/8"]
        );
        assert_eq!(approved(&policy, "3", &advertised), ["fd12::/48"]);
        assert!(approved(&policy, "tag:web", &advertised).is_empty());
    }

    #[test]
    fn exit_routes_are_approved_together() {
        let policy = company(r#""autoApprovers": {"exitNode": ["tag:exit", "autogroup:admin"]}"#);
        let both = ["0.0.0.0/0", "::/0"];
        assert_eq!(approved(&policy, "tag:exit", &both), both);
        assert_eq!(approved(&policy, "1", &both), both, "the owner is an admin");
        assert!(approved(&policy, "tag:exit", &["0.0.0.0/0"]).is_empty());
        assert!(approved(&policy, "2", &both).is_empty());
        assert!(approved(&policy, "tag:exit", &["10.0.0.0/8"]).is_empty());
    }

    #[test]
    fn the_default_route_among_routes_approves_subnets_but_no_exits() {
        let policy = company(
            r#""autoApprovers": {"routes": {"0.0.0.0/0": ["tag:exit"], "::/0": ["tag:exit"]}}"#,
        );
        let advertised = ["0.0.0.0/0", "::/0", "10.0.0.0/8"];
        assert_eq!(approved(&policy, "tag:exit", &advertised), ["10.0.0.0/8"]);
    }

    fn taggable(policy: &Policy, user: usize, tagged_as: &[&str], tag: &str) -> bool {
        let users = users();
        let identity = Identity::of_user(policy, &users[user]);
        let tagged_as: Vec<String> = tagged_as.iter().map(|tag| (*tag).to_owned()).collect();
        may_tag(policy, &identity, &tagged_as, tag)
    }

    const ALICE: usize = 0;
    const BOB: usize = 1;
    const CAROL: usize = 2;

    #[test]
    fn owners_give_their_tags_and_those_that_their_tags_own() {
        let policy = company("");
        assert!(taggable(&policy, BOB, &[], "tag:web"), "by group");
        assert!(taggable(&policy, BOB, &[], "tag:db"), "tag:web owns it");
        assert!(!taggable(&policy, CAROL, &[], "tag:web"));
        assert!(
            taggable(&policy, CAROL, &["tag:web"], "tag:db"),
            "a node with tag:web may"
        );
        assert!(
            taggable(&policy, CAROL, &["tag:router"], "tag:router"),
            "what it has already"
        );
        assert!(
            !taggable(&policy, CAROL, &["tag:db"], "tag:web"),
            "not the other way"
        );
        assert!(taggable(&policy, CAROL, &[], "tag:idle"), "by autogroup");
    }

    #[test]
    fn administrators_give_every_tag_that_exists() {
        let policy = company("");
        assert!(taggable(&policy, ALICE, &[], "tag:router"));
        assert!(
            !taggable(&policy, BOB, &[], "tag:router"),
            "it has no owners"
        );
        assert!(!taggable(&policy, ALICE, &[], "tag:unknown"));
    }

    #[test]
    fn tags_that_own_each_other_do_not_go_round_forever() {
        let mut policy = crate::testing::policy(
            r#"{"tagOwners": {"tag:a": ["tag:a", "tag:b"], "tag:b": ["bob@example.com"]}}"#,
        );
        let owner = Located {
            value: Selector::Tag("tag:a".to_owned()),
            span: 0..0,
        };
        let edited = std::sync::Arc::get_mut(&mut policy).unwrap();
        edited.tag_owners.get_mut("tag:b").unwrap().push(owner);
        assert!(taggable(&policy, BOB, &[], "tag:a"));
        assert!(!taggable(&policy, CAROL, &[], "tag:a"));
    }
}
