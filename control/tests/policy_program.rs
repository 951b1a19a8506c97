//! The policy as administrators meet it: the real program, its commands, and the file of `--policy`.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a panic is the report"
)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use control::model::DEFAULT_TAILNET;
use control::store::sqlite::SqliteStore;
use control::store::{NewPolicy, Store as _};
use policy::file::Context;
use serde_json::Value;

mod common;

use common::PATIENCE;
use common::client::{Client, Identity, server_key};
use common::program::Program;

const ALLOW_ALL: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;
const SSH_ONLY: &str = "// ssh only, é\n{\n  \"acls\": [\n    {\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:22\"]},\n  ],\n}\n";
const BROKEN: &str = "{\n  \"acls\": [\n    {\"action\": \"accept\", \"src\": [\"tag:web\"], \"dst\": [\"*:0\"]},\n  ],\n}\n";
const FAILING: &str = r#"{
  "acls": [],
  "tests": [{"src": "ann@tailnet.internal", "accept": ["192.0.2.1:22"]}],
}"#;

/// What a command came to.
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(program: &Program, args: &[&str]) -> Outcome {
    let output = program.command(args);
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn json(program: &Program, args: &[&str]) -> Value {
    let outcome = run(program, &[args, &["--json"]].concat());
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|_| panic!("{args:?}: {}", outcome.stderr))
}

/// A file beside the state.
fn file(program: &Program, name: &str, text: &str) -> String {
    let path = program.folder.path().join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

async fn join(program: &Program, hostname: &str, routes: &[&str]) -> Identity {
    let key = server_key(program.address).await.unwrap();
    let identity = Identity::new(hostname);
    let client = Client::connect(program.address, &key, &identity.machine)
        .await
        .unwrap();
    let mut request = identity.register(Some(&program.auth_key(&[])));
    let host = request.hostinfo.as_mut().unwrap();
    host.routable_ips = routes.iter().map(|route| route.parse().unwrap()).collect();
    let answer = client.register(&request).await.unwrap();
    assert_eq!(answer.error, "");
    identity
}

#[test]
fn set_get_and_history_keep_a_policy_word_for_word() {
    let program = Program::start("http", &[]);
    let none = run(&program, &["policy", "get"]);
    assert_eq!((none.code, none.stdout.as_str()), (Some(1), ""));
    assert!(
        none.stderr.contains("no policy was ever set"),
        "{}",
        none.stderr
    );
    assert_eq!(json(&program, &["status"])["policy"]["source"], "default");

    let allow = file(&program, "allow", ALLOW_ALL);
    let said = program.ok(&["policy", "set", &allow]);
    assert!(
        said.contains("version 1") && said.contains("1 rule"),
        "{said}"
    );
    let said = program.ok(&["policy", "set", &allow]);
    assert!(said.contains("already") && !said.contains('\n'), "{said}");
    let ssh = file(&program, "ssh", SSH_ONLY);
    let set = json(&program, &["policy", "set", &ssh, "--if-version", "1"]);
    assert_eq!(
        (&set["version"], &set["unchanged"]),
        (&2.into(), &false.into())
    );

    assert_eq!(run(&program, &["policy", "get"]).stdout, SSH_ONLY);
    assert_eq!(
        run(&program, &["policy", "get", "--version", "1"]).stdout,
        ALLOW_ALL
    );
    let got = json(&program, &["policy", "get"]);
    assert_eq!(
        (&got["version"], &got["text"]),
        (&2.into(), &SSH_ONLY.into())
    );
    let author = got["author"].as_str().unwrap().to_owned();
    assert!(!author.is_empty() && author != "unknown", "{author}");
    assert!(got["created"].as_str().unwrap().ends_with('Z'), "{got}");
    let history = json(&program, &["policy", "history"]);
    let versions: Vec<_> = history
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["version"])
        .collect();
    assert_eq!(versions, [2, 1]);
    let status = program.ok(&["status"]);
    assert!(
        status.contains(&format!("version 2, set by {author}")),
        "{status}"
    );

    let outdated = run(&program, &["policy", "set", &allow, "--if-version", "1"]);
    assert_eq!(outdated.code, Some(1));
    assert!(
        outdated.stderr.contains("version 2 by now"),
        "{}",
        outdated.stderr
    );
    let unknown = run(&program, &["policy", "get", "--version", "9"]);
    assert!(
        unknown.stderr.contains("policy history"),
        "{}",
        unknown.stderr
    );
}

#[test]
fn what_is_wrong_is_shown_with_its_place_to_people_and_to_programs() {
    let program = Program::start("http", &[]);
    let broken = file(&program, "broken", BROKEN);
    for command in ["check", "set", "diff", "test"] {
        let outcome = run(&program, &["policy", command, &broken]);
        let code = if command == "test" { 2 } else { 1 };
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (Some(code), ""),
            "{command}"
        );
        for part in ["broken", ":3:", "tag:web", "*:0", "is refused: 2 errors"] {
            assert!(
                outcome.stderr.contains(part),
                "{command}: {part}: {}",
                outcome.stderr
            );
        }
    }
    for command in ["check", "set", "diff"] {
        let outcome = run(&program, &["policy", command, &broken, "--json"]);
        assert_eq!(
            (outcome.code, outcome.stderr.as_str()),
            (Some(1), ""),
            "{command}"
        );
        let list: Value = serde_json::from_str(&outcome.stdout).unwrap();
        let causes: Vec<_> = list
            .as_array()
            .unwrap()
            .iter()
            .map(|it| &it["cause"])
            .collect();
        assert_eq!(causes, ["tag-not-found", "port-zero"], "{command}");
        let first = &list[0];
        assert_eq!(
            (&first["line"], &first["severity"]),
            (&3.into(), &"error".into())
        );
        let (column, length) = (first["column"].as_u64(), first["length"].as_u64());
        let line = BROKEN.lines().nth(2).unwrap();
        let marked = &line[usize::try_from(column.unwrap()).unwrap() - 1..];
        let marked = &marked[..usize::try_from(length.unwrap()).unwrap()];
        assert!(marked.contains("tag:web"), "{marked}");
    }
    let failing = file(&program, "failing", FAILING);
    for command in ["check", "set"] {
        let list = json(&program, &["policy", command, &failing]);
        assert_eq!(list[0]["cause"], "test-failed", "{command}: {list}");
    }
    let tested = json(&program, &["policy", "test", &failing]);
    assert_eq!(
        tested["failures"]["list"][0]["cause"], "test-failed",
        "{tested}"
    );
    let outcome = run(&program, &["policy", "test", &failing]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("192.0.2.1:22"),
        "{}",
        outcome.stderr
    );
    assert_eq!(
        json(&program, &["status"])["policy"]["version"],
        Value::Null
    );

    for (name, text) in [("text", &[0xff][..]), ("empty", b"")] {
        let path = program.folder.path().join(name);
        fs::write(&path, text).unwrap();
        let outcome = run(&program, &["policy", "set", path.to_str().unwrap()]);
        assert_eq!(outcome.code, Some(1));
        assert!(outcome.stderr.contains(name), "{}", outcome.stderr);
    }
    let huge = file(
        &program,
        "huge",
        &format!("// {}\n{{}}", "x".repeat(10 << 20)),
    );
    let refused = run(&program, &["policy", "check", &huge, "--json"]);
    assert!(refused.stdout.contains("too-large"), "{}", refused.stderr);
    let missing = run(&program, &["policy", "set", "/does/not/exist"]);
    assert!(
        missing.stderr.contains("/does/not/exist"),
        "{}",
        missing.stderr
    );
    assert_eq!(missing.stderr.lines().count(), 1, "{}", missing.stderr);
}

#[test]
fn a_policy_is_read_from_standard_input() {
    let program = Program::start("http", &[]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_tailrace-control"))
        .arg("--state-dir")
        .arg(program.folder.path())
        .args(["policy", "set", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(SSH_ONLY.as_bytes()).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
    assert_eq!(run(&program, &["policy", "get"]).stdout, SSH_ONLY);
}

#[test]
fn a_file_is_checked_without_a_server_as_far_as_that_goes() {
    let folder = tempfile::tempdir().unwrap();
    let check = |text: &str, flags: &[&str]| {
        let path = folder.path().join("policy");
        fs::write(&path, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tailrace-control"));
        command.arg("--state-dir").arg(folder.path());
        command.args(["policy", "check"]).arg(path).args(flags);
        command.output().unwrap()
    };
    let fine = check(FAILING, &[]);
    let said = String::from_utf8(fine.stdout).unwrap();
    assert!(fine.status.success() && said.contains("not run"), "{said}");
    let of_a_domain =
        r#"{"acls": [{"action": "accept", "src": ["user:*@example.com"], "dst": ["*:*"]}]}"#;
    assert!(
        check(of_a_domain, &[]).status.success(),
        "only a server knows its domains"
    );
    let broken = check(BROKEN, &["--json"]);
    assert_eq!(broken.status.code(), Some(1));
    let list: Value = serde_json::from_slice(&broken.stdout).unwrap();
    assert_eq!(list[1]["cause"], "port-zero");
}

#[tokio::test]
async fn diff_and_why_answer_for_the_nodes_that_are_there() {
    let program = Program::start("http", &[]);
    for name in ["web", "db"] {
        join(&program, name, &[]).await;
    }
    let ssh = file(&program, "ssh", SSH_ONLY);
    let told = program.ok(&["policy", "diff", &ssh]);
    assert!(
        told.lines()
            .any(|line| line.starts_with("- ") && line.contains("web")),
        "{told}"
    );
    let difference = json(&program, &["policy", "diff", &ssh]);
    assert!(
        !difference["lost"].as_array().unwrap().is_empty(),
        "{difference}"
    );
    assert_eq!(
        json(&program, &["status"])["policy"]["version"],
        Value::Null,
        "a dry run"
    );

    let said = program.ok(&["policy", "set", &ssh]);
    assert!(said.contains("lose") && !said.contains('\n'), "{said}");
    let told = program.ok(&["policy", "diff", &ssh]);
    assert_eq!(told, "nobody gains or loses access");

    let yes = run(&program, &["policy", "why", "web", "db:22"]);
    assert_eq!(yes.code, Some(0), "{}", yes.stderr);
    assert!(yes.stdout.contains("line 4, acls[0]"), "{}", yes.stdout);
    let no = run(&program, &["policy", "why", "web", "db:80"]);
    assert_eq!((no.code, no.stderr.as_str()), (Some(1), ""));
    assert!(!no.stdout.is_empty());
    let no = json(&program, &["policy", "why", "web", "db:tcp:80"]);
    assert_eq!(no["allowed"], false);
    for question in [["nas", "db"], ["web", "nas:22"], ["web", "db:x"]] {
        let outcome = run(&program, &[&["policy", "why"], &question[..]].concat());
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (Some(2), ""),
            "{question:?}"
        );
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    }
}

#[test]
fn roles_are_listed_and_handed_over() {
    let program = Program::start("http", &[]);
    program.ok(&["users", "create", "bob"]);
    let list = program.ok(&["users", "list"]);
    assert!(
        list.contains("ROLE") && list.contains("owner") && list.contains("member"),
        "{list}"
    );
    let said = program.ok(&["users", "role", "bob", "network-admin"]);
    assert_eq!(said, "role of bob: network-admin");
    let said = program.ok(&["users", "role", "bob", "owner"]);
    assert_eq!(said, "role of ann: admin\nrole of bob: owner");
    let changed = json(&program, &["users", "role", "ann", "auditor"]);
    assert_eq!(changed[0]["role"], "auditor");
    for (args, said) in [
        (["bob", "member"], "owns the tailnet"),
        (["bob", "king"], "network-admin"),
        (["eve", "admin"], "no user eve"),
    ] {
        let outcome = run(&program, &[&["users", "role"], &args[..]].concat());
        assert!(
            outcome.code != Some(0) && outcome.stderr.contains(said),
            "{}",
            outcome.stderr
        );
    }
}

#[tokio::test]
async fn routes_are_listed_approved_and_removed() {
    let program = Program::start("http", &[]);
    join(&program, "gate", &["10.1.0.0/16", "0.0.0.0/0", "::/0"]).await;
    let routes = ["nodes", "routes"];
    let state = |prefix: &str| {
        let table = program.ok(&[&routes[..], &["list", "gate"]].concat());
        let line = table.lines().find(|line| line.contains(prefix));
        line.map(|line| line.split_once(prefix).unwrap().1.trim().to_owned())
    };
    assert_eq!(state("10.1.0.0/16").unwrap(), "waits for approval");
    let said = program.ok(&[&routes[..], &["approve", "gate", "10.1.0.0/16"]].concat());
    assert_eq!(said, "approved 10.1.0.0/16 on gate");
    assert_eq!(state("10.1.0.0/16").unwrap(), "serving, offline");
    let said = program.ok(&[&routes[..], &["approve", "gate", "10.9.0.0/16"]].concat());
    assert!(said.ends_with("does not advertise it yet"), "{said}");
    program.ok(&[&routes[..], &["approve", "gate", "0.0.0.0/0"]].concat());
    assert_eq!(
        state("::/0").unwrap(),
        "serving, offline",
        "exit routes come together"
    );
    let removed = [&routes[..], &["remove", "gate", "10.9.0.0/16"]].concat();
    assert_eq!(program.ok(&removed), "removed 10.9.0.0/16 from gate");
    assert_eq!(state("10.9.0.0/16"), None);

    let all = json(&program, &[&routes[..], &["list"]].concat());
    assert_eq!(all[0]["name"], "gate");
    assert_eq!(all[0]["routes"].as_array().unwrap().len(), 3);
    for (args, said) in [
        (&["approve", "gate", "10.1.0.1/16"][..], "10.1.0.0/16"),
        (&["approve", "gate", "100.64.0.0/16"], "overlay"),
        (&["approve", "gate", "home"], "home"),
        (&["approve", "nas", "10.1.0.0/16"], "no node nas"),
        (&["remove", "gate", "10.9.0.0/16"], "not approved"),
        (&["list", "nas"], "no node nas"),
    ] {
        let outcome = run(&program, &[&routes[..], args].concat());
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (Some(1), ""),
            "{args:?}"
        );
        assert!(
            outcome.stderr.contains(said),
            "{args:?}: {}",
            outcome.stderr
        );
    }
}

/// A server whose policy is the file `policy` in a folder of its own.
fn with_file(text: &str) -> (Program, tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy");
    fs::write(&path, text).unwrap();
    let program = Program::start("http", &["--policy", path.to_str().unwrap()]);
    (program, folder, path)
}

/// The policy part of `status`, once it fits.
fn until(program: &Program, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let policy = json(program, &["status"])["policy"].take();
        if fits(&policy) {
            return policy;
        }
        assert!(Instant::now() < deadline, "{what}: {policy}");
    }
}

fn in_force(program: &Program, version: i64) {
    let what = format!("version {version}");
    until(program, &what, |it| {
        it["version"] == version && it["failure"].is_null()
    });
}

fn get(program: &Program, path: &str) -> String {
    let mut socket = TcpStream::connect(program.address).unwrap();
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_policy_file_is_followed_however_it_is_changed() {
    let (program, folder, path) = with_file(ALLOW_ALL);
    let status = json(&program, &["status"])["policy"].take();
    assert_eq!(
        (&status["source"], &status["version"]),
        (&"file".into(), &1.into())
    );
    assert_eq!(status["author"], path.to_str().unwrap());

    fs::write(&path, SSH_ONLY).unwrap();
    in_force(&program, 2);
    assert_eq!(run(&program, &["policy", "get"]).stdout, SSH_ONLY);

    let aside = folder.path().join("aside");
    fs::write(&aside, "{}").unwrap();
    fs::rename(&aside, &path).unwrap();
    in_force(&program, 3);

    let one = file(&program, "allow", ALLOW_ALL);
    std::os::unix::fs::symlink(&one, &aside).unwrap();
    fs::rename(&aside, &path).unwrap();
    in_force(&program, 4);
    let other = file(&program, "ssh", SSH_ONLY);
    std::os::unix::fs::symlink(&other, &aside).unwrap();
    fs::rename(&aside, &path).unwrap();
    in_force(&program, 5);

    let refused = run(&program, &["policy", "set", &one]);
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.stderr.contains(path.to_str().unwrap()),
        "{}",
        refused.stderr
    );
    assert!(
        run(&program, &["policy", "check", &one]).code == Some(0),
        "asking is allowed"
    );
}

#[test]
fn a_broken_policy_file_leaves_the_policy_in_force_and_is_told_everywhere() {
    let (program, _folder, path) = with_file(SSH_ONLY);
    assert!(get(&program, "/health").contains(r#"{"status":"ok"}"#));
    assert!(get(&program, "/metrics").contains("tailrace_control_policy_version 1"));
    let fails = |what: &str| until(&program, what, |it| !it["failure"].is_null());

    fs::write(&path, BROKEN).unwrap();
    let status = fails("broken");
    assert_eq!(status["version"], 1);
    assert_eq!(status["failure"]["diagnostics"][0]["line"], 3, "{status}");
    let text = program.ok(&["status"]);
    assert!(
        text.contains("NOT THE FILE since") && text.contains("line 3: "),
        "{text}"
    );
    let health = get(&program, "/health");
    assert!(
        health.starts_with("HTTP/1.1 200") && health.contains("degraded"),
        "{health}"
    );
    assert!(
        !health.contains("tag:web"),
        "what is in the policy is nobody's business"
    );
    let metrics = get(&program, "/metrics");
    for line in [
        "policy_stale 1",
        "policy_reload_failures_total 1",
        "policy_version 1",
    ] {
        assert!(
            metrics.contains(&format!("tailrace_control_{line}")),
            "{line}"
        );
    }
    assert_eq!(run(&program, &["policy", "get"]).stdout, SSH_ONLY);

    fs::write(&path, SSH_ONLY).unwrap();
    in_force(&program, 1);
    assert!(get(&program, "/health").contains(r#"{"status":"ok"}"#));
    assert!(get(&program, "/metrics").contains("tailrace_control_policy_stale 0"));

    fs::write(&path, FAILING).unwrap();
    let status = fails("a failing test");
    assert_eq!(
        status["failure"]["diagnostics"][0]["cause"], "test-failed",
        "{status}"
    );
    fs::remove_file(&path).unwrap();
    let gone = |it: &Value| it["failure"]["reason"].to_string().contains("cannot read");
    until(&program, "gone", gone);
    fs::write(&path, ALLOW_ALL).unwrap();
    in_force(&program, 2);
}

#[test]
fn sighup_reads_the_file_again_and_ends_no_server() {
    let (program, _folder, path) = with_file(ALLOW_ALL);
    fs::write(&path, BROKEN).unwrap();
    program.signal("HUP");
    until(&program, "told", |it| !it["failure"].is_null());
    fs::write(&path, SSH_ONLY).unwrap();
    program.signal("HUP");
    in_force(&program, 2);

    let without = Program::start("http", &[]);
    without.signal("HUP");
    without.ok(&["users", "create", "bob"]);
}

#[test]
fn a_server_does_not_start_on_a_broken_policy_file_and_shows_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy");
    let state = folder.path().join("state");
    let start = |path: &Path| refused_start(&state, &["--policy", path.to_str().unwrap()]);
    let told = start(&path);
    assert!(told.contains("cannot read the policy file"), "{told}");
    fs::write(&path, BROKEN).unwrap();
    let told = start(&path);
    for part in [":3:", "tag:web", "is refused: 2 errors"] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[tokio::test]
async fn a_server_does_not_start_on_a_stored_policy_it_cannot_read_and_leaves_a_copy() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("control.db");
    let store = SqliteStore::open(&database, DEFAULT_TAILNET).await.unwrap();
    let stored = NewPolicy {
        text: BROKEN.to_owned(),
        context: Context::default(),
        author: "root".to_owned(),
        created: time::OffsetDateTime::UNIX_EPOCH,
        replaces: None,
        approvals: Vec::new(),
    };
    store.set_policy(&stored).await.unwrap();
    store.close().await;
    let told = refused_start(folder.path(), &[]);
    let copy = folder.path().join("refused-policy.hujson");
    assert!(
        told.contains(":3:") && told.contains(copy.to_str().unwrap()),
        "{told}"
    );
    assert_eq!(fs::read_to_string(copy).unwrap(), BROKEN);
}

/// Runs a server that must refuse to start; returns what it says.
fn refused_start(state: &Path, flags: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailrace-control"));
    command.args(["serve", "--server-url", "http://192.0.2.1"]);
    for listener in ["--listen", "--derp-listen", "--stun-listen"] {
        command.args([listener, "127.0.0.1:0"]);
    }
    let output = command.arg("--state-dir").arg(state).args(flags).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}
