//! Lists of sources, as filters hold them: made once, shared by all filters that name them, and
//! kept up to date address by address.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use super::bits::Bits;
use super::rules::{GroupId, Program, quoted};
use super::select::{EVERY_NODE, Kind};

/// Addresses, prefixes and ranges as they go on the wire: sorted as text, each once.
#[derive(Clone, Debug, Default)]
pub(crate) struct SourceList {
    items: Vec<Arc<str>>,
    /// Sum of the hashes of the items.
    hash: u64,
    json: OnceLock<Box<str>>,
}

impl SourceList {
    pub(crate) fn new(items: impl IntoIterator<Item = Arc<str>>) -> Self {
        let mut items: Vec<_> = items.into_iter().collect();
        items.sort_unstable();
        items.dedup();
        let hash = items
            .iter()
            .fold(0, |sum: u64, it| sum.wrapping_add(hash(it)));
        Self {
            items,
            hash,
            json: OnceLock::new(),
        }
    }

    pub(crate) fn items(&self) -> &[Arc<str>] {
        &self.items
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The list as a JSON array.
    pub(crate) fn json(&self) -> &str {
        self.json.get_or_init(|| {
            let items = self.items.iter().map(|it| quoted(it));
            format!("[{}]", items.collect::<Vec<_>>().join(",")).into()
        })
    }

    pub(crate) fn insert(&mut self, item: &Arc<str>) {
        if let Err(place) = self.items.binary_search(item) {
            self.items.insert(place, Arc::clone(item));
            self.hash = self.hash.wrapping_add(hash(item));
            self.json = OnceLock::new();
        }
    }

    pub(crate) fn remove(&mut self, item: &Arc<str>) {
        if let Ok(place) = self.items.binary_search(item) {
            self.items.remove(place);
            self.hash = self.hash.wrapping_sub(hash(item));
            self.json = OnceLock::new();
        }
    }
}

impl PartialEq for SourceList {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || (self.hash == other.hash && self.items == other.items)
    }
}

impl Eq for SourceList {}

impl Hash for SourceList {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

/// The sources of rules, or the targets of those whose companions need them as sources: made when
/// somebody asks, then edited.
#[derive(Clone, Debug)]
pub(crate) struct List {
    /// What is in it whatever the nodes are.
    fixed: Vec<Arc<str>>,
    /// All approved routes are in it.
    pub(crate) has_subnets: bool,
    /// Everything is: `*` says it all.
    has_everything: bool,
    /// Rules that have it as their sources.
    pub(crate) rules: Bits,
    /// Rules that have it as their targets, and companions.
    pub(crate) companions: Bits,
    list: OnceLock<Arc<SourceList>>,
}

impl List {
    pub(crate) fn new(program: &Program, id: GroupId) -> Self {
        let (selectors, posture) = &program.lists[id];
        let (mut fixed, mut has_subnets, mut has_everything) = (Vec::new(), false, false);
        // Where a posture is asked for, nodes that have it are listed one by one.
        let literally = selectors.iter().filter(|_| posture.is_none());
        for selector in literally {
            match program.table.kind(*selector) {
                Kind::Any { outside: true } => has_everything = true,
                Kind::Any { outside: false } => {
                    has_subnets = true;
                    fixed.extend(EVERY_NODE.map(Arc::from));
                }
                Kind::Literal(literal) => fixed.push(Arc::clone(&literal.text)),
                Kind::Owner(_) | Kind::SelfDevices | Kind::Internet => {}
            }
        }
        if has_everything {
            (fixed, has_subnets) = (vec!["*".into()], false);
        }
        Self {
            fixed,
            has_subnets,
            has_everything,
            rules: program.which(|rule| rule.source_list == id),
            companions: program.which(|rule| rule.target_list == id && !rule.companions.is_empty()),
            list: OnceLock::new(),
        }
    }

    /// The list; `addresses`: what nodes and routes add to it.
    pub(crate) fn get(&self, addresses: impl FnOnce() -> Vec<Arc<str>>) -> Arc<SourceList> {
        let list = self.list.get_or_init(|| {
            let fixed = self.fixed.iter().cloned();
            let more = if self.has_everything {
                Vec::new()
            } else {
                addresses()
            };
            Arc::new(SourceList::new(fixed.chain(more)))
        });
        Arc::clone(list)
    }

    pub(crate) fn forget(&mut self) {
        self.list = OnceLock::new();
    }

    /// Edits the list if it was made already.
    pub(crate) fn insert<'a>(&mut self, addresses: impl Iterator<Item = &'a Arc<str>>) {
        if let Some(list) = self.list.get_mut().filter(|_| !self.has_everything) {
            let list = Arc::make_mut(list);
            addresses.for_each(|address| list.insert(address));
        }
    }

    /// The same. What is in the list anyway stays.
    pub(crate) fn remove<'a>(&mut self, addresses: impl Iterator<Item = &'a Arc<str>>) {
        if let Some(list) = self.list.get_mut().filter(|_| !self.has_everything) {
            let list = Arc::make_mut(list);
            let others = addresses.filter(|address| !self.fixed.contains(address));
            others.for_each(|address| list.remove(address));
        }
    }
}

fn hash(item: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    item.hash(&mut hasher);
    hasher.finish()
}
