//! Draws a [`Model`]. Every size is good enough not to fail, 80×24 is what it is made for.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Sparkline, Table};

use super::model::{Column, Liveliness, Model, Pane};
use super::reading::{Rate, Rated, RatedDrop};
use super::text;
use crate::localapi::{BackendState, PeerSample, RouteSample};

/// Widest texts of a path: an IPv6 address with its port, and a prefix.
const WIDEST_PATH: u16 = 47;
const KEYS: &str = "q quit  ↑↓ scroll  Tab pane  s < > sort  r reverse  / filter  h help";
const HELP: &[&str] = &[
    "Tab, 1 2 3      next pane; peers, routes, drops",
    "↑ ↓ PgUp PgDn   scroll; Home and End go to the ends",
    "s >  <          sort by the next column, the one before",
    "r               reverse the order",
    "/               show only rows that hold a text",
    "Esc             clear that, or quit",
    "q Ctrl-C        quit",
    "",
    "K, M, G are powers of 1024 bytes. Peers are counted as",
    "WireGuard does, routes as IP packets. Peers with traffic in",
    "the last three minutes come first, then idle, then offline.",
];

/// How things look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Theme {
    /// Colours may be used; attributes always are.
    pub(super) colour: bool,
}

impl Theme {
    fn coloured(self, colour: Color) -> Style {
        if self.colour {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    fn heading(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    fn faint(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    fn alarm(self) -> Style {
        self.coloured(Color::Red).add_modifier(Modifier::BOLD)
    }
}

/// Draws all of it, and tells the model how many rows there is room for.
pub(super) fn draw(frame: &mut Frame<'_>, model: &mut Model, theme: Theme) {
    let rows = [
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ];
    let [header, totals, tabs, table, footer] = Layout::vertical(rows).areas(frame.area());
    model.set_page(usize::from(table.height.saturating_sub(1)));
    draw_header(frame, header, model, theme);
    draw_totals(frame, totals, model, theme);
    draw_tabs(frame, tabs, model, theme);
    match model.pane {
        Pane::Peers => draw_peers(frame, table, model, theme),
        Pane::Routes => draw_routes(frame, table, model, theme),
        Pane::Drops => draw_drops(frame, table, model, theme),
    }
    draw_footer(frame, footer, model, theme);
    if model.help {
        draw_help(frame, theme);
    }
}

fn draw_header(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let node = &model.reading.node;
    let address = node.addresses.first().map_or("-", String::as_str);
    let or_none = |text: &str| match text {
        "" => "none".to_owned(),
        text => text.to_owned(),
    };
    let engine = if node.device.is_empty() {
        or_none(&node.engine)
    } else {
        format!("{} on {}", node.engine, node.device)
    };
    let rest = format!(
        " {address} │ {engine} │ filter {} │ home {}",
        or_none(&node.filter),
        or_none(&node.home_relay)
    );
    let mut line = vec![
        Span::styled(format!("tailrace {}", node.name), theme.heading()),
        Span::raw(rest),
    ];
    if node.backend_state != BackendState::Running {
        let state = format!(" │ {}", node.backend_state.as_str());
        line.push(Span::styled(state, theme.alarm()));
    }
    frame.render_widget(Line::from(line), area);
}

fn draw_totals(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let rate = model.reading.total.rate;
    let drops = &model.reading.drops;
    let dropped: f64 = drops.iter().map(|drop| drop.packets_per_second).sum();
    let text = format!(
        "rx {:>5}/s  tx {:>5}/s  drops {:>4}/s  ",
        text::bytes(rate.rx()),
        text::bytes(rate.tx()),
        text::per_second(dropped)
    );
    let width = u16::try_from(text.chars().count()).unwrap_or(u16::MAX);
    let columns = [Constraint::Length(width), Constraint::Min(0)];
    let [left, right] = Layout::horizontal(columns).areas(area);
    frame.render_widget(Line::from(text), left);
    let shown = usize::from(right.width).min(model.history.len());
    let shown = model.history.len() - shown..;
    let data: Vec<u64> = model.history.range(shown).copied().collect();
    let graph = Sparkline::default()
        .data(&data)
        .style(theme.coloured(Color::Cyan));
    frame.render_widget(graph, right);
}

fn draw_tabs(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let mut line = Vec::new();
    for pane in Pane::ALL {
        let count = match pane {
            Pane::Peers => model.reading.peers.len(),
            Pane::Routes => model.reading.routes.len(),
            Pane::Drops => model.reading.drops.len(),
        };
        // Brackets, so that it shows without colours and attributes too.
        let (open, close, style) = if pane == model.pane {
            ("[", "]", theme.heading())
        } else {
            (" ", " ", theme.faint())
        };
        let title = format!("{open}{} {count}{close}", pane.title());
        line.push(Span::styled(title, style));
    }
    let warnings = model.reading.node.health.len();
    if warnings > 0 {
        let plural = if warnings == 1 { "" } else { "s" };
        let text = format!("  {warnings} warning{plural}: tailrace status");
        line.push(Span::styled(text, theme.coloured(Color::Yellow)));
    }
    frame.render_widget(Line::from(line), area);
    let every = format!("every {}", text::interval(model.interval));
    let room = usize::from(area.width) > 2 + Line::from(every.as_str()).width();
    if room && warnings == 0 {
        let every = Line::from(Span::styled(every, theme.faint()));
        frame.render_widget(every.alignment(Alignment::Right), area);
    }
}

fn draw_peers(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let fixed = [6, 6, 6, 5, 5, 4];
    let [name, path] = flexible(area, &fixed, 11);
    let peers = model.peers();
    let rows = shown(model, &peers).map(|(live, peer)| {
        let style = match live {
            Liveliness::Active => Style::new(),
            Liveliness::Idle => theme.coloured(Color::Gray),
            Liveliness::Offline => theme.faint(),
        };
        let of = &peer.of;
        let latency = of.latency_seconds.map_or("-".to_owned(), text::latency);
        let age = of.handshake_age_seconds.map_or("-".to_owned(), text::age);
        let [rx_rate, tx_rate] = rates(peer.rate);
        Row::new([
            left(&text::fit(&peer_name(of), name.into())),
            path_cell(of, *live, path.into(), theme),
            right(latency),
            rate_cell(rx_rate, peer.rate.rx(), theme),
            rate_cell(tx_rate, peer.rate.tx(), theme),
            right(text::bytes(of.rx_bytes as f64)),
            right(text::bytes(of.tx_bytes as f64)),
            right(age),
        ])
        .style(style)
    });
    let rows: Vec<Row<'_>> = rows.collect();
    if rows.is_empty() {
        let nothing = if model.filter.is_empty() {
            "No peers."
        } else {
            "No peer holds this text."
        };
        return draw_empty(frame, area, nothing, theme);
    }
    let widths = [name, path].into_iter().chain(fixed);
    draw_table(frame, area, rows, widths, head(model, 2), theme);
}

fn draw_routes(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let fixed = [6, 6, 5, 5];
    let [prefix, via] = flexible(area, &fixed, 9);
    let row = |name: &str, by: &str, rate: Rate, bytes: [Option<u64>; 2]| {
        let [rx_rate, tx_rate] = rates(rate);
        let bytes = bytes.map(|count| count.map_or("-".to_owned(), |c| text::bytes(c as f64)));
        let [rx, tx] = bytes;
        Row::new([
            left(&text::fit(name, prefix.into())),
            left(&text::fit(by, via.into())),
            rate_cell(rx_rate, rate.rx(), theme),
            rate_cell(tx_rate, rate.tx(), theme),
            right(rx),
            right(tx),
        ])
    };
    let routes = model.routes();
    let lines = routes.iter().map(|route| {
        let Rated { of, rate } = *route;
        row(&of.prefix, &via_text(of), *rate, [of.rx_bytes, of.tx_bytes])
    });
    let forwarded = model.forwards().then(|| {
        let Rated { of, rate } = model.reading.forwarded;
        let bytes = [Some(of.rx_bytes), Some(of.tx_bytes)];
        row("known flows", "forwarded here", rate, bytes).style(theme.faint())
    });
    let lines: Vec<Row<'_>> = lines.chain(forwarded).collect();
    let rows: Vec<Row<'_>> = shown(model, &lines).cloned().collect();
    if rows.is_empty() {
        let nothing = "No routes: neither through peers nor served by this node.";
        return draw_empty(frame, area, nothing, theme);
    }
    let widths = [prefix, via].into_iter().chain(fixed);
    draw_table(frame, area, rows, widths, head(model, 2), theme);
}

fn draw_drops(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let fixed = [10, 4, 16, 6, 8];
    let taken = fixed.iter().sum::<u16>() + 5;
    let why = area.width.saturating_sub(taken);
    let drops = model.drops();
    let rows = shown(model, &drops).map(|drop| {
        let RatedDrop {
            of,
            packets_per_second,
        } = *drop;
        Row::new([
            left(&of.place),
            left(&of.direction),
            left(&text::fit(&of.reason, 16)),
            rate_cell(
                text::per_second(*packets_per_second),
                *packets_per_second,
                theme,
            ),
            right(text::count(of.packets as f64)),
            left(&text::fit(&of.why, why.into())),
        ])
    });
    let rows: Vec<Row<'_>> = rows.collect();
    if rows.is_empty() {
        return draw_empty(frame, area, "Nothing was dropped.", theme);
    }
    let mut titles = head(model, 3);
    titles.push(left("why"));
    let widths = fixed.into_iter().chain([why]);
    draw_table(frame, area, rows, widths, titles, theme);
}

fn draw_footer(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let line = if let Some(why) = &model.trouble {
        Span::styled(why.clone(), theme.alarm())
    } else if model.typing {
        Span::raw(format!("filter: {}▏", model.filter))
    } else if model.filter.is_empty() {
        Span::styled(KEYS, theme.faint())
    } else {
        Span::raw(format!("filter: {}  (Esc clears it)", model.filter))
    };
    frame.render_widget(Line::from(line), area);
}

fn draw_help(frame: &mut Frame<'_>, theme: Theme) {
    let lines: Vec<Line<'_>> = HELP.iter().map(|line| Line::from(*line)).collect();
    let widest = lines.iter().map(Line::width).max().unwrap_or_default();
    let size = |len: usize| Constraint::Length(u16::try_from(len + 2).unwrap_or(u16::MAX));
    let area = frame.area().centered(size(widest + 2), size(HELP.len()));
    let block = Block::bordered()
        .title(" Keys ")
        .title_style(theme.heading())
        .padding(ratatui::widgets::Padding::horizontal(1));
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn draw_empty(frame: &mut Frame<'_>, area: Rect, text: &str, theme: Theme) {
    let line = Line::from(Span::styled(format!("  {text}"), theme.faint()));
    frame.render_widget(Paragraph::new(vec![Line::default(), line]), area);
}

fn draw_table<'a>(
    frame: &mut Frame<'_>,
    area: Rect,
    rows: Vec<Row<'a>>,
    widths: impl Iterator<Item = u16>,
    titles: Vec<Cell<'a>>,
    theme: Theme,
) {
    let head = Row::new(titles).style(theme.heading());
    let table = Table::new(rows, widths.map(Constraint::Length))
        .header(head)
        .column_spacing(1);
    frame.render_widget(table, area);
}

/// The rows from the first to be shown on, as many as there is room for.
fn shown<'a, T>(model: &Model, rows: &'a [T]) -> impl Iterator<Item = &'a T> + use<'a, T> {
    rows.iter().skip(model.view().offset).take(model.page())
}

/// Splits what fixed columns leave between the first two: `share` twentieths for the second.
fn flexible(area: Rect, fixed: &[u16], share: u16) -> [u16; 2] {
    let spaces = u16::try_from(fixed.len()).unwrap_or(u16::MAX) + 1;
    let taken = fixed.iter().sum::<u16>() + spaces;
    let room = area.width.saturating_sub(taken);
    let second = (u32::from(room) * u32::from(share) / 20) as u16;
    let second = second.min(WIDEST_PATH);
    [room - second, second]
}

/// Titles; the one by which the table is sorted has an arrow. All but the first `texts` are right-aligned.
fn head<'a>(model: &Model, texts: usize) -> Vec<Cell<'a>> {
    let view = model.view();
    let title = |(number, column): (usize, &Column)| {
        let mut text = column.title(model.pane).to_owned();
        if *column == view.column {
            text.push(if view.falls() { '▼' } else { '▲' });
        }
        if number < texts {
            left(&text)
        } else {
            right(text)
        }
    };
    let columns = model.pane.columns();
    columns.iter().enumerate().map(title).collect()
}

fn left<'a>(text: &str) -> Cell<'a> {
    Cell::from(text.to_owned())
}

fn right<'a>(text: String) -> Cell<'a> {
    Cell::from(Text::from(text).right_aligned())
}

/// A rate; what moves stands out.
fn rate_cell<'a>(text: String, rate: f64, theme: Theme) -> Cell<'a> {
    let cell = right(text);
    if rate > 0.0 {
        cell.style(theme.coloured(Color::Green))
    } else {
        cell
    }
}

fn rates(rate: Rate) -> [String; 2] {
    [rate.rx_bytes_per_second, rate.tx_bytes_per_second]
        .map(|rate| rate.map_or("-".to_owned(), text::bytes))
}

fn peer_name(peer: &PeerSample) -> String {
    let name = match peer.name.as_str() {
        "" => &peer.address,
        name => name,
    };
    if peer.exit_node {
        format!("{name} (exit)")
    } else {
        name.to_owned()
    }
}

fn path_cell<'a>(peer: &PeerSample, live: Liveliness, width: usize, theme: Theme) -> Cell<'a> {
    if peer.expired {
        left("key expired").style(theme.coloured(Color::Red))
    } else if !peer.cur_addr.is_empty() {
        left(&text::endpoint(&peer.cur_addr, width))
    } else if live == Liveliness::Offline {
        left("offline")
    } else if peer.relay.is_empty() {
        left("no path").style(theme.coloured(Color::Red))
    } else {
        let style = match live {
            Liveliness::Active => theme.coloured(Color::Yellow),
            _ => Style::new(),
        };
        left(&text::fit(&format!("relay {}", peer.relay), width)).style(style)
    }
}

fn via_text(route: &RouteSample) -> String {
    match (route.via.as_str(), route.prefix.ends_with("/0")) {
        ("", _) => "this node".to_owned(),
        (via, true) => format!("{via} (exit)"),
        (via, false) => via.to_owned(),
    }
}
