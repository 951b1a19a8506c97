//! Bad input: one clear line, non-zero, state intact.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::{CONNECT, names, refused};
use testnet::tailnet::{Control, ControlOptions, Node, Tailnet, program};
use testnet::{Folder, Lab, Namespace, skip_unless_available, wait_until};

#[test]
fn a_wrong_auth_key_is_refused_and_the_right_one_still_works() -> Result<()> {
    skip_unless_available!();
    let mut lab = Lab::new()?;
    let control = Control::start(lab.server("control")?, ControlOptions::default())?;
    let node = Node::start(lab.behind_nat("alice")?)?;
    let url = control.url();

    let wrong = node.try_cli(&[
        "up",
        "--login-server",
        &url,
        "--auth-key",
        "tskey-auth-wrong",
    ])?;
    refused(&wrong, &["key"])?;
    node.join(&url, &control.auth_key(&[])?)
}

#[test]
fn used_expired_and_revoked_auth_keys_are_refused() -> Result<()> {
    skip_unless_available!();
    let Tailnet {
        nodes,
        control,
        mut lab,
    } = Tailnet::new(&[])?;
    drop(nodes);
    let url = control.url();
    let node = Node::start(lab.behind_nat("alice")?)?;
    let up = |key: &str| node.try_cli(&["up", "--login-server", &url, "--auth-key", key]);

    let expiring = control.auth_key(&["--expiry", "1s"])?;
    let start = Instant::now();
    wait_until(Duration::from_secs(10), "the key's time is over", || {
        ensure!(start.elapsed() > Duration::from_millis(2500), "not yet");
        Ok(())
    })?;
    refused(&up(&expiring)?, &["expired"])?;

    let revoked = control.auth_key(&[])?;
    let list = control.admin(&["keys", "list", "--json"])?;
    let keys: serde_json::Value = serde_json::from_str(&list)?;
    let newest = keys
        .as_array()
        .and_then(|keys| keys.iter().max_by_key(|key| id(key)));
    let id = newest
        .and_then(id)
        .with_context(|| format!("no id in {list}"))?;
    control.admin(&["keys", "revoke", &id.to_string()])?;
    refused(&up(&revoked)?, &["key"])?;

    let once = control.auth_key(&[])?;
    node.join(&url, &once)?;
    let other = Node::start(lab.behind_nat("bob")?)?;
    let again = other.try_cli(&["up", "--login-server", &url, "--auth-key", &once])?;
    refused(&again, &["used"])
}

#[test]
fn an_unreachable_server_is_named() -> Result<()> {
    skip_unless_available!();
    let mut lab = Lab::new()?;
    let _silent = lab.server("silent")?; // 203.0.113.10: a host that refuses
    let node = Node::start(lab.behind_nat("alice")?)?;
    let url = "http://203.0.113.10:8080";
    let output = node.try_cli(&[
        "up",
        "--login-server",
        url,
        "--auth-key",
        "k",
        "--timeout",
        "5s",
    ])?;
    refused(&output, &["203.0.113.10:8080"])
}

#[test]
fn commands_without_a_daemon_say_so() -> Result<()> {
    skip_unless_available!();
    let space = Namespace::new("lonely")?;
    let output = space.output(&[
        program("tailrace")?.as_os_str(),
        "--socket".as_ref(),
        "/nonexistent/tailrace.sock".as_ref(),
        "status".as_ref(),
    ])?;
    refused(&output, &["/nonexistent/tailrace.sock", "daemon"])
}

#[test]
fn broken_configuration_is_refused_with_file_and_key() -> Result<()> {
    skip_unless_available!();
    let space = Namespace::new("broken")?;
    let folder = Folder::new("broken")?;
    let config = folder.path().join("broken.toml");
    fs::write(&config, "wireguard = \"kernel\"\nprot = 41641\n")?;
    let daemon = daemon(
        &space,
        folder.path(),
        &["--config", config.to_str().context("path")?],
    )?;
    refused(&daemon, &["broken.toml", "prot"])?;

    fs::write(&config, "listen = [not toml\n")?;
    let control = serve(&space, folder.path(), "127.0.0.1:0", config.to_str())?;
    refused(&control, &["broken.toml"])
}

#[test]
fn a_busy_port_is_named() -> Result<()> {
    skip_unless_available!();
    let space = Namespace::new("busy")?;
    let folder = Folder::new("busy")?;
    // Held by the listening socket, which stays in the namespace it was made in.
    let listener = space.enter(|| TcpListener::bind("127.0.0.1:8080"))??;

    let control = serve(&space, folder.path(), "127.0.0.1:8080", None)?;
    refused(&control, &["127.0.0.1:8080", "--listen"])?;
    let relay = space.output(&[
        program("tailrace-relay")?.to_str().context("path")?,
        "serve",
        "--state-dir",
        folder.path().to_str().context("path")?,
        "--listen",
        "127.0.0.1:8080",
        "--stun-listen",
        "127.0.0.1:3478",
    ])?;
    refused(&relay, &["127.0.0.1:8080", "--listen"])?;
    let metrics = daemon(&space, folder.path(), &["--metrics", "127.0.0.1:8080"])?;
    refused(&metrics, &["127.0.0.1:8080", "--metrics"])?;
    drop(listener);
    Ok(())
}

#[test]
fn without_root_the_daemon_says_what_it_needs() -> Result<()> {
    skip_unless_available!("setpriv");
    let space = Namespace::new("nobody")?;
    let folder = Folder::new("nobody")?;
    // Where nobody may read: the repository need not be such a place.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777))?;
    let copy = folder.path().join("tailrace");
    fs::copy(program("tailrace")?, &copy)?;
    let state = folder.path().join("state");
    fs::create_dir(&state)?;
    fs::set_permissions(&state, fs::Permissions::from_mode(0o777))?;
    let words = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let output = space.output(
        &words
            .map(str::to_owned)
            .into_iter()
            .chain([copy.display().to_string(), "daemon".to_owned()])
            .chain(["--state-dir".to_owned(), state.display().to_string()])
            .chain([
                "--socket".to_owned(),
                state.join("s.sock").display().to_string(),
            ])
            .collect::<Vec<_>>(),
    )?;
    refused(&output, &["root"])
}

#[test]
fn a_failed_join_leaves_the_state_as_it_was() -> Result<()> {
    skip_unless_available!("ping");
    let tailnet = netns_tests::connected_pair()?;
    let [alice, bob] = netns_tests::pair(&tailnet.nodes)?;
    let before = netns_tests::addresses(alice)?;
    let url = tailnet.control.url();
    let output = alice.try_cli(&[
        "up",
        "--login-server",
        &url,
        "--auth-key",
        "wrong",
        "--force-reauth",
    ])?;
    refused(&output, &["key"])?;
    ensure!(
        netns_tests::addresses(alice)? == before,
        "the address changed"
    );
    alice.reach(bob.ip("-4")?, CONNECT)
}

#[test]
fn unknown_options_and_nodes_are_refused() -> Result<()> {
    skip_unless_available!();
    let Tailnet { control, .. } = Tailnet::new(&[])?;
    let output =
        |words: &[&str]| -> Result<Output> { Ok(control.admin_command()?.args(words).output()?) };
    refused(&output(&["nodes", "delete", "nobody"])?, &["nobody"])?;
    refused(
        &output(&["nodes", "approve", "nocode", "--user", "lab"])?,
        &["nocode"],
    )?;
    refused(
        &output(&["keys", "create", "--user", "stranger"])?,
        &["stranger"],
    )?;
    let unknown = output(&["nodes", "explode"])?;
    ensure!(!unknown.status.success(), "an unknown command succeeded");
    names(&String::from_utf8_lossy(&unknown.stderr), &["explode"])
}

/// A number under `id`, whatever its case.
fn id(key: &serde_json::Value) -> Option<i64> {
    let object = key.as_object()?;
    let (_, value) = object
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("id"))?;
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

fn daemon(space: &Namespace, state: &Path, options: &[&str]) -> Result<Output> {
    let state = state.to_str().context("path")?;
    let program = program("tailrace")?;
    let socket = format!("{state}/tailrace.sock");
    let mut words = vec![
        program.to_str().context("path")?,
        "daemon",
        "--state-dir",
        state,
    ];
    words.extend(["--socket", &socket]);
    words.extend(options);
    space.output(&words)
}

fn serve(space: &Namespace, state: &Path, listen: &str, config: Option<&str>) -> Result<Output> {
    let program = program("tailrace-control")?;
    let mut words = vec![
        program.to_str().context("path")?,
        "serve",
        "--listen",
        listen,
    ];
    words.extend(["--state-dir", state.to_str().context("path")?]);
    words.extend(["--server-url", "http://127.0.0.1:8080"]);
    if let Some(config) = config {
        words.extend(["--config", config]);
    }
    space.output(&words)
}
