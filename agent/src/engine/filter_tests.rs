//! What the engine makes of a packet filter that nothing enforces, without a host.

use std::collections::BTreeMap;
use std::time::Duration;

use control_proto::Presence;
use control_proto::tailcfg::{FilterRule, MapResponse, Node, NodeId};
use keys::NodePublic;

use super::core::{Engine, EngineConfig};
use super::{FilterState, Handle};
use crate::control::ControlError;
use crate::localapi::BackendState;
use crate::net::EngineChoice;
use crate::prefs::{Prefs, RISK_NO_FILTER};
use crate::state::StateDir;

/// An engine that wants to run, and what keeps its folder and its notices.
fn engine() -> (tempfile::TempDir, Engine, Handle) {
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::open(folder.path()).unwrap();
    let config = EngineConfig {
        device: "unused0".to_owned(),
        port: 41641,
        wireguard: EngineChoice::Embedded,
    };
    let (mut engine, handle) = Engine::new(config, state).unwrap();
    engine.prefs = Prefs {
        control_url: "http://control.example".to_owned(),
        want_running: true,
        ..Prefs::default()
    };
    (folder, engine, handle)
}

/// Sends the engine a frame of the map stream and has it judge the result.
fn judge(engine: &mut Engine, first: bool, response: MapResponse) -> FilterState {
    let node_key = engine.node_key.clone();
    engine.handle_map(first, node_key, Box::new(response));
    let map = engine.map.clone().unwrap();
    let filter = engine.judge_filter(&map);
    engine.publish();
    filter
}

fn filters(rules: Vec<FilterRule>) -> MapResponse {
    let named = BTreeMap::from([("base".to_owned(), Some(rules))]);
    MapResponse {
        packet_filters: Presence::Value(named),
        ..MapResponse::default()
    }
}

fn first(engine: &Engine, rules: Vec<FilterRule>) -> MapResponse {
    MapResponse {
        node: Some(Node {
            id: NodeId(1),
            key: engine.node_key.public(),
            machine_authorized: true,
            ..Node::default()
        }),
        ..filters(rules)
    }
}

#[tokio::test]
async fn a_filter_other_than_allow_all_is_refused_until_the_risk_is_accepted() {
    let (_folder, mut engine, handle) = engine();
    let map = first(&engine, Vec::new());
    assert_eq!(judge(&mut engine, true, map), FilterState::Refused);
    let notice = handle.notices().borrow().clone();
    assert_eq!(notice.state, BackendState::Stopped);
    assert!(notice.error.unwrap().contains("--accept-risk=no-filter"));
    assert!(engine.health()[0].contains("--accept-risk=no-filter"));

    engine.prefs.accepted_risks = vec![RISK_NO_FILTER.to_owned()];
    let map = first(&engine, Vec::new());
    assert_eq!(judge(&mut engine, true, map), FilterState::RiskAccepted);
    assert_eq!(handle.notices().borrow().error, None);
    assert!(engine.health()[0].contains("not enforced"));
}

#[tokio::test]
async fn a_delta_changes_the_verdict_both_ways() {
    let (_folder, mut engine, handle) = engine();
    let open = || vec![FilterRule::allow_all()];
    let map = first(&engine, open());
    assert_eq!(judge(&mut engine, true, map), FilterState::AllowAll);
    let refused = judge(&mut engine, false, filters(Vec::new()));
    assert_eq!(refused, FilterState::Refused);
    assert!(handle.notices().borrow().error.is_some());
    let again = judge(&mut engine, false, filters(open()));
    assert_eq!(again, FilterState::AllowAll);
    assert_eq!(handle.notices().borrow().error, None);
    assert!(engine.health().is_empty(), "{:?}", engine.health());
}

#[tokio::test]
async fn a_jailed_peer_needs_a_filter_too() {
    let (_folder, mut engine, _handle) = engine();
    let map = MapResponse {
        peers: Presence::Value(vec![Node {
            id: NodeId(2),
            key: NodePublic::from_bytes([2; 32]),
            is_jailed: true,
            ..Node::default()
        }]),
        ..first(&engine, vec![FilterRule::allow_all()])
    };
    assert_eq!(judge(&mut engine, true, map), FilterState::Refused);
}

#[tokio::test]
async fn a_cached_refusal_is_final_only_if_the_server_cannot_be_asked() {
    let (_folder, mut engine, handle) = engine();
    let map = first(&engine, Vec::new());
    judge(&mut engine, true, map);
    engine.map_stale = true;
    engine.publish();
    assert_eq!(handle.notices().borrow().error, None);
    assert_eq!(handle.notices().borrow().state, BackendState::Stopped);

    engine.control_problem = Some(ControlError::Timeout {
        server: "http://control.example".to_owned(),
        limit: Duration::from_secs(10),
    });
    engine.publish();
    assert!(handle.notices().borrow().error.is_some());
}
