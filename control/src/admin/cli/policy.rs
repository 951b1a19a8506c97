//! `policy`.

use std::path::{Path, PathBuf};

use policy::Policy;
use policy::check::{Access, Difference, Explanation};
use policy::file::Context;

use super::print::{day_and_time, json, table};
use super::{Answer, ClientError, Output};
use crate::admin::api::policy::{
    AcceptedJson, AdoptedJson, DraftJson, TestsJson, VersionJson, WhyJson,
};
use crate::admin::client::{Client, Refusal};
use crate::policy_file::{ReadError, read_text};

/// Lines of a diff that are printed; `--json` prints all.
const DIFF_LINES: usize = 100;
/// Names in one line of it.
const DIFF_NAMES: usize = 5;
/// What standard input is called.
const STDIN: &str = "<stdin>";

/// `policy`. FILE is HuJSON; `-` reads standard input.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum PolicyCommand {
    /// Say what is wrong with a policy file; with a server that runs, its tests must pass, too
    Check {
        /// HuJSON; - reads standard input
        file: PathBuf,
        /// Print a list of {cause, severity, message, line, column, length, help}
        #[command(flatten)]
        output: Output,
    },
    /// Put a policy in force, if it is in order and its tests pass
    Set {
        /// HuJSON; - reads standard input
        file: PathBuf,
        /// Only in place of this version; 0 = of none
        #[arg(long, value_name = "NUMBER")]
        if_version: Option<i64>,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Print the policy in force, as it was set
    Get {
        /// Another version, as listed by `policy history`
        #[arg(long, value_name = "NUMBER")]
        version: Option<i64>,
        /// Print JSON: version, author, time and text
        #[command(flatten)]
        output: Output,
    },
    /// List the versions that are kept; the first is in force
    History(Output),
    /// Run the tests of a policy, by default of the one in force; exit status 1: one fails, 2: it
    /// cannot be told
    Test {
        /// HuJSON; - reads standard input
        file: Option<PathBuf>,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Say what a policy would change: who gains and who loses access
    Diff {
        /// HuJSON; - reads standard input
        file: PathBuf,
        /// Print JSON, all of it
        #[command(flatten)]
        output: Output,
    },
    /// Say why SRC may reach DST, or what is missing; exit status 1: it may not, 2: it cannot be told
    Why {
        /// Node, address, user, tag, group or host of the policy
        src: String,
        /// The same, with :PORT or :PROTOCOL:PORT if it matters
        #[arg(value_name = "DST[:PORT]")]
        dst: String,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
}

impl PolicyCommand {
    /// Does exit status 1 mean *no*, so that trouble needs another one?
    pub(super) fn is_question(&self) -> bool {
        matches!(self, Self::Why { .. } | Self::Test { .. })
    }
}

impl PolicyCommand {
    /// How it prints.
    pub(super) fn output(&self) -> Output {
        match self {
            Self::History(output)
            | Self::Check { output, .. }
            | Self::Set { output, .. }
            | Self::Get { output, .. }
            | Self::Test { output, .. }
            | Self::Diff { output, .. }
            | Self::Why { output, .. } => *output,
        }
    }
}

pub(super) async fn run(client: &Client, command: PolicyCommand) -> Result<Answer, ClientError> {
    match command {
        PolicyCommand::Check { file, output } => check(client, &file, output).await,
        PolicyCommand::Set {
            file,
            if_version,
            output,
        } => {
            let draft = DraftJson {
                replaces: if_version,
                ..read(&file)?
            };
            let setting = client.post("/v1/policy", &draft).await;
            let adopted: AdoptedJson = match refused(setting, output)? {
                Some(adopted) => adopted,
                None => return Ok(Answer::No),
            };
            if output.json {
                json(&adopted)?;
            } else {
                eprint!("{}", adopted.accepted.warnings.excerpts);
                print_adopted(&adopted);
            }
            Ok(Answer::Yes)
        }
        PolicyCommand::Get { version, output } => {
            let path = match version {
                Some(version) => format!("/v1/policy/versions/{version}"),
                None => "/v1/policy".to_owned(),
            };
            let policy: VersionJson = client.get(&path).await?;
            if output.json {
                json(&policy)?;
            } else {
                // As it was set, to the last byte.
                print!("{}", policy.text.unwrap_or_default());
            }
            Ok(Answer::Yes)
        }
        PolicyCommand::History(output) => {
            let versions: Vec<VersionJson> = client.get("/v1/policy/versions").await?;
            if output.json {
                json(&versions)?;
            } else {
                let rows = versions.into_iter();
                let rows = rows.map(|it| {
                    let created = day_and_time(Some(it.created));
                    [it.version.to_string(), created, it.author]
                });
                table(["VERSION", "SET", "BY"], rows);
            }
            Ok(Answer::Yes)
        }
        PolicyCommand::Test { file, output } => test(client, file.as_deref(), output).await,
        PolicyCommand::Diff { file, output } => {
            let comparing = client.post("/v1/policy/diff", &read(&file)?).await;
            let difference: Difference = match refused(comparing, output)? {
                Some(difference) => difference,
                None => return Ok(Answer::No),
            };
            if output.json {
                json(&difference)?;
            } else {
                print_difference(&difference);
            }
            Ok(Answer::Yes)
        }
        PolicyCommand::Why { src, dst, output } => {
            let ask = WhyJson {
                source: src,
                destination: dst,
            };
            let told: Explanation = client.post("/v1/policy/why", &ask).await?;
            if output.json {
                json(&told)?;
            } else {
                print_explanation(&told);
            }
            Ok(Answer::of(told.allowed))
        }
    }
}

async fn check(client: &Client, file: &Path, output: Output) -> Result<Answer, ClientError> {
    let draft = read(file)?;
    let checking = client.post("/v1/policy/check", &draft).await;
    let alone = matches!(checking, Err(ClientError::NoServer { .. }));
    let checking = if alone { check_alone(&draft) } else { checking };
    let accepted: AcceptedJson = match refused(checking, output)? {
        Some(accepted) => accepted,
        None => return Ok(Answer::No),
    };
    if output.json {
        json(&accepted.warnings.list)?;
        return Ok(Answer::Yes);
    }
    eprint!("{}", accepted.warnings.excerpts);
    let (name, rules) = (draft.name, rules(accepted.rules));
    if alone {
        println!("{name} is in order: {rules}; its tests were not run, since no server answers");
    } else {
        println!("{name} is in order: {rules}, {}", passed(accepted.tests));
    }
    Ok(Answer::Yes)
}

/// What can be said without a server: all but what depends on users and nodes.
fn check_alone(draft: &DraftJson) -> Result<AcceptedJson, ClientError> {
    let context = Context {
        domains: domains_in(&draft.text),
        ..Context::default()
    };
    match Policy::parse(&draft.name, &draft.text, &context) {
        Ok(parsed) => {
            let warnings = policy::Diagnostics::new(
                &draft.name,
                std::sync::Arc::clone(&parsed.policy.text),
                parsed.warnings,
            );
            Ok(AcceptedJson {
                rules: parsed.policy.rules.as_ref().map(Vec::len),
                tests: parsed.policy.tests.len() + parsed.policy.ssh_tests.len(),
                warnings: (&warnings).into(),
            })
        }
        Err(diagnostics) => Err(ClientError::Policy(Box::new(Refusal {
            error: crate::service::policy_summary(&diagnostics),
            diagnostics: (&diagnostics).into(),
        }))),
    }
}

/// The domains that a policy names as the tailnet's; only the server knows which are. The first
/// stands for the one that `alice@` means.
fn domains_in(text: &str) -> Vec<String> {
    const OWN: &str = "tailnet.invalid";
    let after = text.split(":*@").skip(1);
    let domain = |rest: &str| {
        let end = rest.find(['"', '\'']).unwrap_or(rest.len());
        rest[..end].to_owned()
    };
    let named = after.map(domain);
    std::iter::once(OWN.to_owned()).chain(named).collect()
}

async fn test(client: &Client, file: Option<&Path>, output: Output) -> Result<Answer, ClientError> {
    let testing = match file {
        Some(file) => client.post("/v1/policy/test", &read(file)?).await,
        None => client.get("/v1/policy/test").await,
    };
    let TestsJson { tests, failures } = testing?;
    let good = failures.list.is_empty();
    if output.json {
        json(&TestsJson { tests, failures })?;
    } else if good {
        println!("{}", passed(tests));
    } else {
        eprint!("{}", failures.excerpts);
        println!(
            "{} in {}",
            count(failures.list.len(), "failure"),
            count(tests, "test")
        );
    }
    Ok(Answer::of(good))
}

/// A refusal is an answer where JSON is wanted: the list of what is wrong. `None` = it was printed.
fn refused<T>(outcome: Result<T, ClientError>, output: Output) -> Result<Option<T>, ClientError> {
    match outcome {
        Err(ClientError::Policy(refusal)) if output.json => {
            json(&refusal.diagnostics.list)?;
            Ok(None)
        }
        Ok(value) => Ok(Some(value)),
        Err(error) => Err(error),
    }
}

fn print_adopted(adopted: &AdoptedJson) {
    let AdoptedJson {
        version, accepted, ..
    } = adopted;
    if adopted.unchanged {
        println!("policy version {version} is in force already, word for word");
        return;
    }
    let mut told = vec![rules(accepted.rules), passed(accepted.tests)];
    told.push(match (adopted.gained, adopted.lost) {
        (0, 0) => "nobody gains or loses access".to_owned(),
        (gained, lost) => format!("{gained} pairs gain access, {lost} lose some"),
    });
    if !adopted.routes_approved.is_empty() {
        told.push(count(adopted.routes_approved.len(), "route") + " approved");
    }
    println!("policy version {version} is in force: {}", told.join(", "));
}

fn print_difference(difference: &Difference) {
    let Difference { gained, lost } = difference;
    if gained.is_empty() && lost.is_empty() {
        println!("nobody gains or loses access");
        return;
    }
    for (sign, list) in [('+', gained), ('-', lost)] {
        for access in list.iter().take(DIFF_LINES) {
            println!("{sign} {}", access_line(access));
        }
        if let Some(more) = list.len().checked_sub(DIFF_LINES).filter(|more| *more > 0) {
            println!("{sign} … and {more} more: --json prints all");
        }
    }
}

fn access_line(access: &Access) -> String {
    let ends = |names: &[String]| {
        let shown: Vec<&str> = names.iter().take(DIFF_NAMES).map(String::as_str).collect();
        let more = names.len().saturating_sub(DIFF_NAMES);
        let more = (more > 0).then(|| format!(" and {more} more"));
        shown.join(", ") + &more.unwrap_or_default()
    };
    let (sources, destinations) = (ends(&access.sources), ends(&access.destinations));
    format!("{sources} -> {destinations}  {}", access.ports)
}

fn print_explanation(told: &Explanation) {
    println!("{}", told.summary);
    for rule in &told.rules {
        println!(
            "  line {}, {}[{}]: {}",
            rule.line, rule.section, rule.index, rule.text
        );
    }
    for missing in &told.missing {
        println!("  {missing}");
    }
}

/// Reads FILE, or standard input.
fn read(file: &Path) -> Result<DraftJson, ClientError> {
    let (name, text) = if file == Path::new("-") {
        let text = read_text(Path::new(STDIN), std::io::stdin().lock())?;
        (STDIN.to_owned(), text)
    } else {
        // It may be a pipe: the shell's <(…).
        let opened = std::fs::File::open(file).map_err(|source| ReadError::Io {
            path: file.to_owned(),
            source,
        })?;
        (file.display().to_string(), read_text(file, opened)?)
    };
    Ok(DraftJson {
        name,
        text,
        replaces: None,
    })
}

fn rules(rules: Option<usize>) -> String {
    match rules {
        Some(rules) => count(rules, "rule"),
        None => "no rules, so all is allowed".to_owned(),
    }
}

fn passed(tests: usize) -> String {
    match tests {
        0 => "no tests".to_owned(),
        tests => count(tests, "test") + " passed",
    }
}

fn count(number: usize, noun: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{s}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_taken_as_the_file_names_them() {
        let text = r#"{"a": ["user:*@example.com", 'x', "localpart:*@b.example"]} // user:*@"#;
        let expected = ["tailnet.invalid", "example.com", "b.example", ""];
        assert_eq!(domains_in(text), expected);
    }

    #[test]
    fn a_long_line_of_a_diff_is_cut() {
        let access = Access {
            sources: (0..7).map(|number| format!("n{number}")).collect(),
            destinations: vec!["web".to_owned()],
            ports: "tcp:22".to_owned(),
        };
        let line = access_line(&access);
        assert_eq!(line, "n0, n1, n2, n3, n4 and 2 more -> web  tcp:22");
    }
}
