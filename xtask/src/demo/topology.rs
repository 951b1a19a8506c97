//! The lab, drawn, and how to look around in it.

use std::path::Path;

use anyhow::{Context, Result};
use testnet::tailnet::Node;

use super::figures::name;
use super::gateways::Site;
use super::lab::Demo;

/// Width of one machine's column.
const COLUMN: usize = 36;

/// Draws who is where.
///
/// # Errors
///
/// When a node cannot tell its addresses.
pub(super) fn draw(demo: &Demo) -> Result<String> {
    let tailnet = &demo.tailnet;
    let [alice, bob] = tailnet.nodes.as_slice() else {
        anyhow::bail!("two nodes")
    };
    let (left, right) = (column(alice, 100)?, column(bob, 101)?);
    let server = tailnet.control.host().address().to_string();
    let middle = [
        "│".to_owned(),
        "control".to_owned(),
        server,
        "tailrace-control :8080".to_owned(),
        "DERP :3340, STUN :3478".to_owned(),
    ];
    let line = "─".repeat(COLUMN - 1);
    let mut text = format!("  internet 203.0.113.0/24\n  ┌{line}┬{line}┐\n");
    for row in 0..left.len() {
        let cell = |column: &[String]| column.get(row).cloned().unwrap_or_default();
        let (left, middle, right) = (cell(&left), cell(&middle), cell(&right));
        let drawn = format!("  {left:<COLUMN$}{middle:<COLUMN$}{right}");
        text.push_str(drawn.trim_end());
        text.push('\n');
    }
    text.push_str("  on the internet too:\n");
    text.push_str(&gateway(
        &demo.gate,
        &demo.office,
        demo.office.lan.prefixes(),
    )?);
    let beyond = demo
        .outside
        .lan
        .outside()
        .map(|address| address.to_string());
    text.push_str(&gateway(&demo.exit, &demo.outside, beyond)?);
    Ok(text)
}

/// A gateway and what it leads to, on one line.
fn gateway(node: &Node, site: &Site, leads_to: [String; 2]) -> Result<String> {
    Ok(format!(
        "    {:<6}{:<15}{:<15}─── leads to {} ─── {}, a web server\n",
        name(node),
        node.host().address().to_string(),
        node.ip("-4")?.to_string(),
        leads_to.join(", "),
        site.lan.addresses()[0],
    ))
}

/// A node below its router.
fn column(node: &Node, router: u8) -> Result<Vec<String>> {
    let status = node.status()?;
    let engine = status
        .pointer("/Tailrace/Engine")
        .and_then(|engine| engine.as_str());
    let engine = engine.context("status names no engine")?;
    Ok(vec![
        "│".to_owned(),
        format!("{}-router (NAT)", name(node)),
        format!("203.0.113.{router}"),
        "│".to_owned(),
        name(node),
        format!("{}, {engine} WireGuard", node.host().address()),
        node.ip("-4")?.to_string(),
        node.ip("-6")?.to_string(),
    ])
}

/// Commands that look around in the lab from another terminal.
pub(super) fn hints(demo: &Demo, programs: &Path) -> String {
    let tailnet = &demo.tailnet;
    let mut text = String::from("From another terminal, as root:\n\n");
    for node in tailnet.nodes.iter().chain([&demo.gate, &demo.exit]) {
        let space = node.host().namespace().name();
        let tailrace = programs.join("tailrace");
        let (tailrace, socket) = (tailrace.display(), node.socket());
        let socket = socket.display();
        for command in ["status", "top"] {
            text.push_str(&format!(
                "  ip netns exec {space} {tailrace} --socket {socket} {command}\n"
            ));
        }
        for other in &tailnet.nodes {
            if !std::ptr::eq(node, other)
                && let Ok(address) = other.ip("-4")
            {
                text.push_str(&format!("  ip netns exec {space} ping {address}\n"));
            }
        }
    }
    let space = tailnet.control.host().namespace().name();
    let control = programs.join("tailrace-control");
    let state = tailnet.control.state_dir().display();
    text.push_str(&format!(
        "  ip netns exec {space} {} --state-dir {state} nodes list\n",
        control.display()
    ));
    text
}
