//! The engine without a host: what it remembers and tells.

use control_proto::Presence;
use control_proto::tailcfg::{MapResponse, Node, NodeId};

use super::*;
use crate::engine::{EngineConfig, Handle};
use crate::net::{EngineChoice, NetError, ShieldMode};
use crate::state::StateDir;

/// An engine with a state folder of its own, in which it knows a server.
fn engine() -> (tempfile::TempDir, Engine, Handle) {
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::open(folder.path()).unwrap();
    let prefs = Prefs {
        // Nobody listens there.
        control_url: "http://127.0.0.1:9".to_owned(),
        ..Prefs::default()
    };
    state.save_prefs(&prefs).unwrap();
    let config = EngineConfig {
        direct: false,
        port_mapping: false,
        endpoints: Vec::new(),
        device: "unused0".to_owned(),
        port: 0,
        wireguard: EngineChoice::Embedded,
        shield: ShieldMode::Off,
    };
    let (mut engine, handle) = Engine::new(config, state).unwrap();
    engine.leftovers = false;
    (folder, engine, handle)
}

fn first(engine: &Engine, domain: &str) -> Event {
    let node = Node {
        id: NodeId(1),
        key: engine.node_key.public(),
        ..Node::default()
    };
    frame(
        engine,
        true,
        MapResponse {
            node: Some(node),
            domain: domain.to_owned(),
            ..MapResponse::default()
        },
    )
}

fn frame(engine: &Engine, first: bool, response: MapResponse) -> Event {
    Event::Map {
        first,
        node_key: Arc::clone(&engine.node_key),
        response: Box::new(response),
    }
}

fn domain(engine: &Engine) -> &str {
    engine.map.as_ref().map_or("", |map| map.domain.as_str())
}

#[tokio::test]
async fn an_error_of_the_data_plane_is_told_until_it_is_over() {
    let (_folder, mut engine, handle) = engine();
    engine.net_failed(&NetError::PortInUse { port: 7 }, "a test");
    engine.publish();
    let error = handle.notices().borrow().error.clone();
    assert!(error.is_some_and(|text| text.contains("port 7")));
    assert!(engine.net_retry_at.is_some());

    engine.take_down().await.unwrap();
    engine.publish();
    assert_eq!(handle.notices().borrow().error, None);
    assert!(engine.health().is_empty());
    assert_eq!(engine.net_retry_at, None);
}

#[tokio::test]
async fn down_fails_as_long_as_it_cannot_remove_what_may_be_there() {
    let (_folder, mut engine, handle) = engine();
    // Too long a name to ask the kernel about.
    engine.config.device = "no-device-has-a-name-like-this".to_owned();
    engine.leftovers = true;
    let stop = serde_json::json!({"WantRunning": false, "WantRunningSet": true});
    let stop = stop.as_object().unwrap();
    for _ in 0..2 {
        let refused = engine.edit_prefs(stop).await;
        assert!(matches!(refused, Err(Refusal::Net(_))), "{refused:?}");
        engine.publish();
        assert!(handle.notices().borrow().error.is_some());
        assert!(engine.net_retry_at.is_some());
    }
    engine.leftovers = false;
    engine.edit_prefs(stop).await.unwrap();
    assert_eq!(engine.net_retry_at, None);
}

#[tokio::test]
async fn after_a_refused_frame_nothing_fits_but_a_whole_map() {
    let (_folder, mut engine, _handle) = engine();
    let event = first(&engine, "one.test");
    engine.handle_control(event).await;
    assert_eq!(domain(&engine), "one.test");

    // A first frame without the node itself.
    let event = frame(&engine, true, MapResponse::default());
    engine.handle_control(event).await;
    let delta = MapResponse {
        domain: "two.test".to_owned(),
        peers: Presence::Absent,
        ..MapResponse::default()
    };
    let event = frame(&engine, false, delta.clone());
    engine.handle_control(event).await;
    assert_eq!(domain(&engine), "one.test");

    let event = first(&engine, "three.test");
    engine.handle_control(event).await;
    assert_eq!(domain(&engine), "three.test");
    let event = frame(&engine, false, delta);
    engine.handle_control(event).await;
    assert_eq!(domain(&engine), "two.test");
}

#[tokio::test]
async fn a_logout_is_answered_with_what_went_wrong_and_a_second_one_waits_its_turn() {
    let (_folder, mut engine, _handle) = engine();
    let (first, mut first_answer) = oneshot::channel();
    let (second, mut second_answer) = oneshot::channel();
    engine.log_out(first);
    engine.log_out(second);
    assert!(matches!(second_answer.try_recv(), Ok(Err(Refusal::Busy))));

    // The way to the server failed before the logout itself was tried.
    let problem = ControlError::Silent(Duration::from_secs(1));
    engine.handle_control(Event::Problem(problem)).await;
    assert!(first_answer.try_recv().is_err(), "answered too early");
    assert!(engine.control.is_some());

    let error = ControlError::Refused("not today".to_owned());
    engine.handle_control(Event::LogoutFailed(error)).await;
    let answer = first_answer.try_recv().unwrap();
    assert!(answer.unwrap_err().to_string().contains("not today"));
    assert!(engine.control.is_none(), "it was there for the logout only");
    assert!(!engine.prefs.logged_out);
}

#[tokio::test]
async fn a_command_that_stops_a_logout_tells_so() {
    let (_folder, mut engine, _handle) = engine();
    let (reply, mut answer) = oneshot::channel();
    engine.log_out(reply);
    engine.stop_control().await;
    assert!(matches!(answer.try_recv(), Ok(Err(Refusal::CutShort))));
}

#[tokio::test]
async fn a_map_that_keepalives_confirmed_is_stored_when_the_engine_stops() {
    let (_folder, mut engine, _handle) = engine();
    engine.start_control(Login::default(), false).unwrap();
    let event = first(&engine, "one.test");
    engine.handle_control(event).await;
    engine.save_map();
    let stored = engine.state.netmap().unwrap().unwrap().confirmed_at;
    assert!(stored > 0);

    let later = SystemTime::now() + Duration::from_secs(100);
    engine.map_confirmed = Some(later);
    engine.stop_control().await;
    let again = engine.state.netmap().unwrap().unwrap().confirmed_at;
    assert!(again >= stored + 99, "{stored} {again}");
}
