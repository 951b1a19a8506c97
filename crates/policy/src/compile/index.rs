//! Keeping the network up to date, node by node.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use control_proto::tailcfg::CapMap;
use ipnet::IpNet;

use super::Network;
use super::attributes;
use super::bits::Bits;
use super::class::{Class, Key};
use super::filter::{Filter, Template};
use super::identity::Identity;
use super::routes::Route;
use super::rules::GroupId;
use super::select::Cover;
use super::ssh::Part;
use crate::tailnet::{Node, NodeId, Owner, User, UserId};

/// A node and what was made of it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(super) node: Node,
    /// Number of its class.
    pub(super) class: usize,
    /// Its addresses as text.
    texts: [Arc<str>; 2],
    /// Attributes that the policy sets.
    pub(super) attributes: CapMap,
    /// Those that peers are told.
    pub(super) for_peers: Vec<String>,
    /// SSH rules that it is told.
    pub(super) ssh: Vec<Part>,
    /// What was answered last.
    filter: Mutex<Option<Arc<Filter>>>,
}

impl Entry {
    /// The node's filter by the template of its class, the same one while nothing changes.
    pub(super) fn filter(&self, template: &Arc<Template>) -> Arc<Filter> {
        let mut last = self.filter.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last
            .as_ref()
            .filter(|it| Arc::ptr_eq(&it.template, template))
        {
            return Arc::clone(last);
        }
        Arc::clone(last.insert(template.filter(self.node.v4, self.node.v6)))
    }

    pub(super) fn last_filter(&self) -> Option<Arc<Filter>> {
        self.filter
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn has_no_v4(&self) -> bool {
        self.attributes.contains_key(attributes::DISABLE_IPV4)
    }

    /// Texts of the addresses that a selector covers.
    pub(super) fn texts(&self, cover: Cover) -> impl Iterator<Item = &Arc<str>> {
        let [v4, v6] = &self.texts;
        let v4 = cover.has(Cover::V4).then_some(v4);
        v4.into_iter().chain(cover.has(Cover::V6).then_some(v6))
    }
}

/// What a change touches.
struct Touched {
    /// Rules whose list of sources changed.
    sources: Bits,
    /// Rules whose list of targets changed, which their companions use.
    targets: Bits,
    /// Users whose devices changed.
    users: BTreeSet<UserId>,
}

impl Network {
    /// Adds a user or replaces it.
    pub fn put_user(&mut self, user: User) {
        if self.users.get(&user.id) != Some(&user) {
            let id = user.id;
            self.users.insert(id, user);
            self.user_changed(id);
        }
    }

    /// Forgets a user.
    pub fn remove_user(&mut self, id: UserId) {
        if self.users.remove(&id).is_some() {
            self.user_changed(id);
        }
    }

    fn user_changed(&mut self, id: UserId) {
        self.owners.remove(&Owner::User(id));
        let devices = self.devices.get(&id).cloned().unwrap_or_default();
        for id in devices {
            if let Some(node) = self.node(id).cloned() {
                self.place(node, None);
            }
        }
    }

    /// Adds a node or replaces it.
    pub fn put_node(&mut self, node: Node) {
        if self.node(node.id) != Some(&node) {
            self.place(node, None);
        }
    }

    /// Forgets a node.
    pub fn remove_node(&mut self, id: NodeId) {
        let mut touched = self.untouched();
        self.leave(id, &mut touched);
        if let Some(entry) = self.nodes.remove(&id) {
            self.drop_if_empty(entry.class);
        }
        self.ssh.remove_node(id);
        self.forget_answers(&touched);
    }

    /// Puts a node where it belongs now. `filter`: what it was told last, if it is not known here.
    pub(super) fn place(&mut self, node: Node, filter: Option<Arc<Filter>>) {
        let policy = Arc::clone(&self.policy);
        let identity = Identity::of_owner(&policy, &node.owner, |id| self.users.get(&id)).at(&node);
        let of_owner = self
            .owners
            .entry(node.owner.clone())
            .or_insert_with(|| self.program.table.covers_of_owner(&policy, &identity));
        let routes: BTreeSet<IpNet> = node.served_routes().collect();
        let key = Key {
            covers: self.program.table.covers(of_owner, &node, &routes),
            admits: self.program.admits(&policy, &node.attributes),
            user: match node.owner {
                Owner::User(id) if !self.program.self_rules.is_empty() => Some(id),
                Owner::User(_) | Owner::Tags(_) => None,
            },
            routes,
            exit: node.exit,
        };
        let own = attributes::own(&policy, &identity, &node);
        self.ssh.put_node(&policy, &identity, &node);
        let ssh = self.ssh.parts(&policy, &identity, node.id);

        let class = self.class_number(key);
        let old = self.nodes.get(&node.id);
        let stays = old.is_some_and(|old| {
            old.class == class
                && (old.node.v4, old.node.v6) == (node.v4, node.v6)
                && old.node.owner == node.owner
        });
        let last = old.filter(|_| stays).and_then(|old| old.last_filter());
        let id = node.id;
        let entry = Entry {
            class,
            texts: [node.v4.to_string().into(), node.v6.to_string().into()],
            for_peers: attributes::for_peers(&own, &node),
            attributes: own,
            ssh,
            filter: Mutex::new(last.or(filter)),
            node,
        };
        if stays {
            self.nodes.insert(id, Arc::new(entry));
            return;
        }
        let mut touched = self.untouched();
        let old = old.map(|old| old.class);
        self.leave(id, &mut touched);
        self.join(entry, &mut touched);
        old.into_iter().for_each(|class| self.drop_if_empty(class));
        self.forget_answers(&touched);
    }

    /// The class with this key. A new one has no members yet.
    fn class_number(&mut self, key: Key) -> usize {
        if let Some(number) = self.class_numbers.get(&key) {
            return *number;
        }
        let key = Arc::new(key);
        let class = Some(Class::new(&self.program, Arc::clone(&key)));
        let number = match self.holes.pop() {
            Some(hole) => {
                self.classes[hole] = class;
                hole
            }
            None => {
                self.classes.push(class);
                self.classes.len() - 1
            }
        };
        self.class_numbers.insert(key, number);
        number
    }

    fn drop_if_empty(&mut self, number: usize) {
        if let Some(class) = self.classes[number].take_if(|class| class.members.is_empty()) {
            self.class_numbers.remove(&class.key);
            self.holes.push(number);
        }
    }

    fn join(&mut self, entry: Entry, touched: &mut Touched) {
        let id = entry.node.id;
        if let Some(class) = &mut self.classes[entry.class] {
            class.members.insert(id);
            for (list, cover) in &class.lists {
                self.lists[*list].insert(entry.texts(*cover));
                touched.list(&self.lists[*list].rules, &self.lists[*list].companions);
            }
            let key = Arc::clone(&class.key);
            for net in &key.routes {
                if !self.routes.contains_key(net) {
                    self.routes.insert(*net, Route::new(&self.program, net));
                    self.routes_changed(touched);
                }
                if let Some(route) = self.routes.get_mut(net) {
                    route.routers.insert(id);
                }
            }
        }
        if let Owner::User(user) = entry.node.owner {
            self.devices.entry(user).or_default().insert(id);
            touched.users.insert(user);
        }
        self.nodes.insert(id, Arc::new(entry));
    }

    /// Takes a node out of everything but `nodes`.
    fn leave(&mut self, id: NodeId, touched: &mut Touched) {
        let Some(entry) = self.nodes.get(&id).cloned() else {
            return;
        };
        if let Some(class) = &mut self.classes[entry.class] {
            class.members.remove(&id);
            for (list, cover) in &class.lists {
                self.lists[*list].remove(entry.texts(*cover));
                touched.list(&self.lists[*list].rules, &self.lists[*list].companions);
            }
            let key = Arc::clone(&class.key);
            for net in &key.routes {
                if let Some(route) = self.routes.get_mut(net) {
                    route.routers.remove(&id);
                    if route.routers.is_empty() {
                        self.routes.remove(net);
                        self.routes_changed(touched);
                    }
                }
            }
        }
        if let Owner::User(user) = entry.node.owner
            && let Some(devices) = self.devices.get_mut(&user)
        {
            devices.remove(&id);
            if devices.is_empty() {
                self.devices.remove(&user);
            }
            touched.users.insert(user);
        }
    }

    /// The source `*` lists all approved routes.
    fn routes_changed(&mut self, touched: &mut Touched) {
        for list in self.lists.iter_mut().filter(|list| list.has_subnets) {
            list.forget();
            touched.list(&list.rules, &list.companions);
        }
    }

    fn untouched(&self) -> Touched {
        let none = Bits::below(self.program.rules.len());
        Touched {
            sources: none.clone(),
            targets: none,
            users: BTreeSet::new(),
        }
    }

    fn forget_answers(&mut self, touched: &Touched) {
        for class in self.classes.iter_mut().flatten() {
            let by_user = class
                .key
                .user
                .is_some_and(|user| touched.users.contains(&user));
            if by_user || class.to.meets(&touched.sources) || class.from.meets(&touched.targets) {
                class.template = OnceLock::new();
            }
            class.peers = OnceLock::new();
        }
    }

    /// A list of sources.
    pub(super) fn list(&self, id: GroupId) -> Arc<super::sources::SourceList> {
        self.lists[id].get(|| {
            let classes = self.classes.iter().flatten();
            let listed = classes.flat_map(move |class| {
                let place = class.lists.binary_search_by_key(&id, |(list, _)| *list);
                let members = place
                    .ok()
                    .map(|place| (class.lists[place].1, &class.members));
                members.into_iter().flat_map(|(cover, members)| {
                    let entries = members.iter().filter_map(|id| self.nodes.get(id));
                    entries.flat_map(move |entry| entry.texts(cover).cloned())
                })
            });
            let routes = self.routes.keys().filter(|_| self.lists[id].has_subnets);
            listed
                .chain(routes.map(|net| net.to_string().into()))
                .collect()
        })
    }

    /// The devices of a user that are sources of a rule.
    pub(super) fn devices_of(&self, user: UserId, rule: usize) -> Arc<super::sources::SourceList> {
        let devices = self.devices.get(&user).into_iter().flatten();
        let entries = devices.filter_map(|id| self.nodes.get(id));
        let sources = entries.filter(|entry| self.class(entry).from.contains(rule));
        let texts = sources.flat_map(|entry| entry.texts(Cover::ADDRESSES).cloned());
        Arc::new(super::sources::SourceList::new(texts))
    }
}

impl Touched {
    fn list(&mut self, rules: &Bits, companions: &Bits) {
        self.sources.add(rules);
        self.targets.add(companions);
    }
}

/// A node's own addresses as prefixes, the IPv4 one first.
pub(super) fn own_nets(node: &Node, without_v4: bool) -> Vec<IpNet> {
    let v4 = (!without_v4).then_some(IpAddr::V4(node.v4));
    v4.into_iter()
        .chain([IpAddr::V6(node.v6)])
        .map(IpNet::from)
        .collect()
}
