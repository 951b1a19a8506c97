//! Changes of users and nodes; what follows is in the viewers' queues when the call returns.

use policy::compile::PeerView;
use time::OffsetDateTime;

use super::announce::Post;
use super::{Engine, Member, News, render, tailnet};
use crate::model::{ChangeNumber, Node, NodeId, User, UserId};

impl Engine {
    /// Takes note of a change that no map shows, such as an auth key.
    pub fn put_nothing(&self, number: ChangeNumber) {
        self.state().number = number;
    }

    /// Takes in a new user, or one that has another role or other groups.
    pub fn put_user(&self, number: ChangeNumber, user: User) {
        let mut state = self.state();
        state.number = number;
        let id = user.id;
        let owned = state.members.values().map(|member| &member.node);
        let owned = owned.filter(|node| render::owner(node) == id);
        let before = state.before(owned.map(|node| node.id));
        state.network.put_user(tailnet::user(&self.settings, &user));
        state.users.insert(id, user);
        for member in state.members.values_mut() {
            if render::owner(&member.node) == id {
                member.forget_renderings();
            }
        }
        state.follow(Post::new(&self.settings, None), &before);
    }

    /// Forgets a user, who has no nodes.
    pub fn remove_user(&self, number: ChangeNumber, id: UserId) {
        let mut state = self.state();
        state.number = number;
        state.network.remove_user(id);
        state.users.remove(&id);
    }

    /// Takes in a new node, or a node that was renamed, tagged, re-keyed, expired, given to another
    /// owner or other routes. What it reports is kept as the engine has it: that is newer.
    pub fn put_node(&self, number: ChangeNumber, node: Node, now: OffsetDateTime) {
        let mut state = self.state();
        state.number = number;
        let id = node.id;
        state.by_key.insert(node.key, id);
        let mut news = News::Nothing;
        if let Some(member) = state.members.get_mut(&id) {
            let plain = PeerView::default();
            let before = member.render(&self.settings, &plain);
            let (old_key, old_owner) = (member.node.key, render::owner(&member.node));
            member.node = Node {
                capver: member.node.capver,
                hostinfo: std::mem::take(&mut member.node.hostinfo),
                endpoints: std::mem::take(&mut member.node.endpoints),
                disco: member.node.disco,
                home_derp: member.node.home_derp,
                last_seen: member.node.last_seen,
                ..node
            };
            member.told_expired = member.node.is_expired(now);
            if member.render(&self.settings, &plain) != before {
                let new_owner = render::owner(&member.node) != old_owner;
                news = News::Whole { new_owner };
            }
            if old_key != member.node.key {
                // Its stream speaks for the old key; the node opens another with the new one.
                if let Some(stream) = member.stream.take() {
                    stream.session.end();
                }
                state.by_key.remove(&old_key);
            }
        } else {
            state.members.insert(id, Member::new(node, now));
        }
        state.changed(&self.settings, id, &news);
    }

    /// Forgets a node. Its own stream is told that its key is expired, so that it asks for a new
    /// login instead of retrying (pitfall 18), and then ends.
    pub fn remove_node(&self, number: ChangeNumber, id: NodeId, now: OffsetDateTime) {
        let mut state = self.state();
        state.number = number;
        state.unsaved.remove(&id);
        state.unheard.remove(&id);
        if let Some(member) = state.members.get_mut(&id) {
            member.node.expires = Some(now - time::Duration::seconds(1));
        }
        let gone = state.own(&self.settings, id);
        let Some(member) = state.members.remove(&id) else {
            return;
        };
        state.by_key.remove(&member.node.key);
        if let (Some(stream), Some(gone)) = (&member.stream, gone) {
            stream.session.end_with(gone);
        }
        state.removed(&self.settings, id);
    }
}
