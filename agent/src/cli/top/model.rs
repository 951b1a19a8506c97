//! What is on the screen and what keys do to it: [`Model`]. It neither draws nor asks the daemon.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::time::Duration;

use super::reading::{Rated, RatedDrop, Reading};
use crate::localapi::{PeerSample, RouteSample, Sample};

/// Readings whose total is kept for the sparkline.
const HISTORY: usize = 512;

/// One of the tables.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Pane {
    /// Peers.
    #[default]
    Peers,
    /// Routes.
    Routes,
    /// Drops.
    Drops,
}

impl Pane {
    pub(super) const ALL: [Self; 3] = [Self::Peers, Self::Routes, Self::Drops];

    /// Its name on the tab.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Peers => "Peers",
            Self::Routes => "Routes",
            Self::Drops => "Drops",
        }
    }

    /// Its columns, from the left.
    pub(super) fn columns(self) -> &'static [Column] {
        use Column::{Age, Direction, Latency, Name, Path, Place, Reason, Rx, RxRate, Tx, TxRate};
        use Column::{PacketRate, Packets};
        match self {
            Self::Peers => &[Name, Path, Latency, RxRate, TxRate, Rx, Tx, Age],
            Self::Routes => &[Name, Path, RxRate, TxRate, Rx, Tx],
            Self::Drops => &[Place, Direction, Reason, PacketRate, Packets],
        }
    }
}

/// A column that a table can be sorted by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Column {
    /// Name of a peer; prefix of a route.
    Name,
    /// Path to a peer; peer behind which a route lies.
    Path,
    Latency,
    RxRate,
    TxRate,
    Rx,
    Tx,
    /// Since the last handshake.
    Age,
    Place,
    Direction,
    Reason,
    PacketRate,
    Packets,
}

impl Column {
    /// Its heading in a table.
    pub(super) fn title(self, pane: Pane) -> &'static str {
        match (self, pane) {
            (Self::Name, Pane::Routes) => "route",
            (Self::Path, Pane::Routes) => "via",
            (Self::Name, _) => "name",
            (Self::Path, _) => "path",
            (Self::Latency, _) => "rtt",
            (Self::RxRate, _) => "rx/s",
            (Self::TxRate, _) => "tx/s",
            (Self::Rx, _) => "rx",
            (Self::Tx, _) => "tx",
            (Self::Age, _) => "hs",
            (Self::Place, _) => "where",
            (Self::Direction, _) => "dir",
            (Self::Reason, _) => "reason",
            (Self::PacketRate, _) => "pkt/s",
            (Self::Packets, _) => "packets",
        }
    }

    /// Whether large values stand on top unless the order is reversed.
    fn falls(self) -> bool {
        use Column::{PacketRate, Packets, Rx, RxRate, Tx, TxRate};
        matches!(self, RxRate | TxRate | Rx | Tx | PacketRate | Packets)
    }
}

/// How one table is sorted and scrolled.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    /// By which of the pane's columns.
    pub(super) column: Column,
    /// The other way round.
    pub(super) reversed: bool,
    /// Rows above the first that is shown.
    pub(super) offset: usize,
}

impl View {
    /// Whether the largest values stand on top.
    pub(super) fn falls(self) -> bool {
        self.column.falls() != self.reversed
    }
}

/// What a key means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Action {
    Quit,
    /// Esc: leaves the help or the filter, and if there is neither, the program.
    Back,
    NextPane,
    PreviousPane,
    Pane(Pane),
    NextColumn,
    PreviousColumn,
    Reverse,
    /// Scrolls by rows.
    Rows(i32),
    /// Scrolls by pages.
    Pages(i32),
    Top,
    Bottom,
    Help,
    /// Begins to type a filter.
    Filter,
    /// A letter of the filter.
    Type(char),
    /// Takes the last letter away.
    Erase,
    /// Ends typing.
    Accept,
}

/// How a peer is shown: active ones above, then idle ones, then those that are offline.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Liveliness {
    Active,
    Idle,
    Offline,
}

/// Everything that is shown.
#[derive(Debug)]
pub(super) struct Model {
    /// The last reading.
    pub(super) reading: Reading,
    /// Why there was none since.
    pub(super) trouble: Option<String>,
    /// Received and sent by all peers, in bytes a second, oldest first.
    pub(super) history: VecDeque<u64>,
    /// Between two samples.
    pub(super) interval: Duration,
    /// The table shown.
    pub(super) pane: Pane,
    /// Only rows that hold this text.
    pub(super) filter: String,
    /// The filter is being typed.
    pub(super) typing: bool,
    /// The help is shown.
    pub(super) help: bool,
    views: [View; 3],
    last: Option<Sample>,
    /// Rows of the table that fit on the screen, as drawn last.
    page: usize,
}

impl Model {
    /// Begins with a first sample, without rates.
    pub(super) fn new(first: Sample, interval: Duration) -> Self {
        let view = |column| View {
            column,
            reversed: false,
            offset: 0,
        };
        let mut model = Self {
            reading: Reading::default(),
            trouble: None,
            history: VecDeque::new(),
            interval,
            pane: Pane::default(),
            filter: String::new(),
            typing: false,
            help: false,
            views: [
                view(Column::RxRate),
                view(Column::RxRate),
                view(Column::PacketRate),
            ],
            last: None,
            page: 1,
        };
        model.sampled(first);
        model
    }

    /// Takes the next sample.
    pub(super) fn sampled(&mut self, sample: Sample) {
        self.reading = Reading::between(self.last.as_ref(), sample.clone());
        if self.last.is_some() {
            if self.history.len() == HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(self.reading.total.rate.sum() as u64);
        }
        self.last = Some(sample);
        self.trouble = None;
    }

    /// Shows why there is no sample; what was known stays.
    pub(super) fn failed(&mut self, why: String) {
        self.trouble = Some(why);
    }

    /// Does what a key says. Returns false to end.
    pub(super) fn act(&mut self, action: Action) -> bool {
        if self.help && action != Action::Quit {
            self.help = false;
            return true;
        }
        match action {
            Action::Quit => return false,
            Action::Back if self.typing || !self.filter.is_empty() => {
                self.typing = false;
                self.filter.clear();
            }
            Action::Back => return false,
            Action::NextPane => self.turn(1),
            Action::PreviousPane => self.turn(Pane::ALL.len() - 1),
            Action::Pane(pane) => self.pane = pane,
            Action::NextColumn => self.sort(1),
            Action::PreviousColumn => self.sort(self.pane.columns().len() - 1),
            Action::Reverse => self.view_mut().reversed ^= true,
            Action::Rows(rows) => self.scroll(rows as isize),
            Action::Pages(pages) => self.scroll(pages as isize * self.page as isize),
            Action::Top => self.view_mut().offset = 0,
            Action::Bottom => self.view_mut().offset = usize::MAX,
            Action::Help => self.help = true,
            Action::Filter => self.typing = true,
            Action::Type(letter) => self.filter.push(letter),
            Action::Erase => drop(self.filter.pop()),
            Action::Accept => self.typing = false,
        }
        self.clamp();
        true
    }

    /// How the shown table is sorted and scrolled.
    pub(super) fn view(&self) -> View {
        self.views[self.pane as usize]
    }

    /// Learns how many rows fit on the screen.
    pub(super) fn set_page(&mut self, rows: usize) {
        self.page = rows.max(1);
        self.clamp();
    }

    /// How many rows fit on the screen.
    pub(super) fn page(&self) -> usize {
        self.page
    }

    /// Peers in the order in which they are shown.
    pub(super) fn peers(&self) -> Vec<(Liveliness, &Rated<PeerSample>)> {
        let holds = self.holds();
        let peers = self.reading.peers.iter().filter(|peer| {
            let texts = [&peer.of.name, &peer.of.address, &peer.of.cur_addr];
            holds(&texts.map(String::as_str))
        });
        let mut peers: Vec<_> = peers.map(|peer| (liveliness(peer), peer)).collect();
        let compare = |a: &Rated<PeerSample>, b: &Rated<PeerSample>, column| match column {
            Column::Path => path_key(&a.of).cmp(&path_key(&b.of)),
            Column::Latency => unknown_last(a.of.latency_seconds, b.of.latency_seconds),
            Column::Age => {
                a.of.handshake_age_seconds
                    .unwrap_or(u64::MAX)
                    .cmp(&b.of.handshake_age_seconds.unwrap_or(u64::MAX))
            }
            Column::RxRate => a.rate.rx().total_cmp(&b.rate.rx()),
            Column::TxRate => a.rate.tx().total_cmp(&b.rate.tx()),
            Column::Rx => a.of.rx_bytes.cmp(&b.of.rx_bytes),
            Column::Tx => a.of.tx_bytes.cmp(&b.of.tx_bytes),
            _ => Ordering::Equal,
        };
        let View { column, .. } = self.views[Pane::Peers as usize];
        let order = self.order(Pane::Peers);
        peers.sort_by(|(live_a, a), (live_b, b)| {
            let by_name = |a: &Rated<PeerSample>, b: &Rated<PeerSample>| {
                (&a.of.name, &a.of.id).cmp(&(&b.of.name, &b.of.id))
            };
            let by_column = match column {
                Column::Name => by_name(a, b),
                column => compare(a, b, column),
            };
            live_a
                .cmp(live_b)
                .then(order(by_column))
                // What is the same by that stands by traffic, then by name.
                .then(b.rate.sum().total_cmp(&a.rate.sum()))
                .then(by_name(a, b))
        });
        peers
    }

    /// Routes in the order in which they are shown.
    pub(super) fn routes(&self) -> Vec<&Rated<RouteSample>> {
        let holds = self.holds();
        let routes = self.reading.routes.iter();
        let mut routes: Vec<_> = routes
            .filter(|route| holds(&[&route.of.prefix, &route.of.via]))
            .collect();
        let View { column, .. } = self.views[Pane::Routes as usize];
        let order = self.order(Pane::Routes);
        routes.sort_by(|a, b| {
            let by_name = (&a.of.prefix, &a.of.via).cmp(&(&b.of.prefix, &b.of.via));
            let by_column = match column {
                Column::Path => a.of.via.cmp(&b.of.via),
                Column::RxRate => a.rate.rx().total_cmp(&b.rate.rx()),
                Column::TxRate => a.rate.tx().total_cmp(&b.rate.tx()),
                Column::Rx => a.of.rx_bytes.cmp(&b.of.rx_bytes),
                Column::Tx => a.of.tx_bytes.cmp(&b.of.tx_bytes),
                _ => by_name,
            };
            order(by_column)
                .then(b.rate.sum().total_cmp(&a.rate.sum()))
                .then(by_name)
        });
        routes
    }

    /// Drops in the order in which they are shown.
    pub(super) fn drops(&self) -> Vec<&RatedDrop> {
        let holds = self.holds();
        let drops = self.reading.drops.iter();
        let mut drops: Vec<_> = drops
            .filter(|drop| holds(&[&drop.of.place, &drop.of.reason]))
            .collect();
        let View { column, .. } = self.views[Pane::Drops as usize];
        let order = self.order(Pane::Drops);
        drops.sort_by(|a, b| {
            let by_column = match column {
                Column::Place => a.of.place.cmp(&b.of.place),
                Column::Direction => a.of.direction.cmp(&b.of.direction),
                Column::Reason => a.of.reason.cmp(&b.of.reason),
                Column::PacketRate => a.packets_per_second.total_cmp(&b.packets_per_second),
                _ => a.of.packets.cmp(&b.of.packets),
            };
            order(by_column)
                .then(b.of.packets.cmp(&a.of.packets))
                .then_with(|| (&a.of.place, &a.of.reason).cmp(&(&b.of.place, &b.of.reason)))
        });
        drops
    }

    /// How many rows the shown table has.
    fn rows(&self) -> usize {
        match self.pane {
            Pane::Peers => self.peers().len(),
            Pane::Routes => self.routes().len() + usize::from(self.forwards()),
            Pane::Drops => self.drops().len(),
        }
    }

    /// Whether this node serves routes: the table of routes then ends with what was forwarded.
    pub(super) fn forwards(&self) -> bool {
        let mut routes = self.reading.routes.iter();
        self.filter.is_empty() && routes.any(|route| route.of.via.is_empty())
    }

    /// Whether one of a row's texts holds the filter.
    fn holds(&self) -> impl Fn(&[&str]) -> bool {
        let filter = self.filter.to_lowercase();
        move |texts| {
            let mut texts = texts.iter();
            filter.is_empty() || texts.any(|text| text.to_lowercase().contains(&filter))
        }
    }

    /// Turns an order by the pane's column into the one that is shown.
    fn order(&self, pane: Pane) -> impl Fn(Ordering) -> Ordering + use<> {
        let falls = self.views[pane as usize].falls();
        move |order| if falls { order.reverse() } else { order }
    }

    fn view_mut(&mut self) -> &mut View {
        &mut self.views[self.pane as usize]
    }

    fn turn(&mut self, by: usize) {
        self.pane = Pane::ALL[(self.pane as usize + by) % Pane::ALL.len()];
    }

    fn sort(&mut self, by: usize) {
        let columns = self.pane.columns();
        let view = self.view_mut();
        let now = columns.iter().position(|column| *column == view.column);
        view.column = columns[(now.unwrap_or_default() + by) % columns.len()];
        view.reversed = false;
        view.offset = 0;
    }

    fn scroll(&mut self, rows: isize) {
        let view = self.view_mut();
        view.offset = view.offset.saturating_add_signed(rows);
    }

    /// Keeps the last row at the lower edge, at most.
    fn clamp(&mut self) {
        let last = self.rows().saturating_sub(self.page);
        let view = self.view_mut();
        view.offset = view.offset.min(last);
    }
}

fn liveliness(peer: &Rated<PeerSample>) -> Liveliness {
    if peer.of.active || peer.rate.sum() > 0.0 {
        Liveliness::Active
    } else if peer.of.online && !peer.of.expired {
        Liveliness::Idle
    } else {
        Liveliness::Offline
    }
}

/// Direct paths before relayed ones.
fn path_key(peer: &PeerSample) -> (bool, &str, &str) {
    (peer.cur_addr.is_empty(), &peer.cur_addr, &peer.relay)
}

fn unknown_last(a: Option<f64>, b: Option<f64>) -> Ordering {
    let known = |latency: Option<f64>| latency.unwrap_or(f64::INFINITY);
    known(a).total_cmp(&known(b))
}
