//! `tailrace top`: live throughput, paths and drops.
//!
//! ```text
//! daemon ── samples ──► reading (rates) ──► model (order, pane, keys) ──► draw ──► terminal
//! ```
//!
//! This file is the shell around it: it asks the daemon, reads keys and signals, and owns the terminal.

mod draw;
mod model;
mod reading;
#[cfg(test)]
mod tests;
mod text;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use futures_util::StreamExt;
use http::Method;
use ratatui::DefaultTerminal;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::CliError;
use super::args::TopArgs;
use crate::error_text::error_text;
use crate::localapi::{Client, Sample};
use draw::Theme;
use model::{Action, Model, Pane};
use reading::Reading;

/// How long the daemon may take for a sample.
const PATIENCE: Duration = Duration::from_secs(10);

/// Shows the dashboard until the user has seen enough, or prints one reading.
pub(super) async fn run(client: &Client, args: &TopArgs) -> Result<ExitCode, CliError> {
    if args.json {
        return print(client, args.interval).await;
    }
    if !io::stdout().is_terminal() {
        return Err(CliError::Other(
            "standard output is no terminal: `tailrace top --json` prints one sample".to_owned(),
        ));
    }
    // Before the terminal is touched: what is wrong with the daemon is told as by every other command.
    let mut model = Model::new(sample(client).await?, args.interval);
    let theme = Theme {
        colour: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    };
    let mut signals = Signals::catch()?;
    let mut samples = follow(client.clone(), args.interval);
    let mut screen = Screen::open()?;
    let mut events = EventStream::new();
    loop {
        screen.draw(&mut model, theme)?;
        tokio::select! {
            event = events.next() => {
                let event = event.transpose().map_err(no_terminal)?;
                // The terminal is gone.
                let Some(event) = event else { return Ok(ExitCode::FAILURE) };
                if let Some(action) = action(&event, model.typing)
                    && !model.act(action)
                {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            taken = samples.recv() => match taken {
                Some(Ok(sample)) => model.sampled(sample),
                Some(Err(error)) => model.failed(error_text(&error)),
                None => return Err(CliError::Other("no samples are taken any more".to_owned())),
            },
            code = signals.next() => return Ok(code),
        }
    }
}

/// Prints one reading as JSON.
async fn print(client: &Client, interval: Duration) -> Result<ExitCode, CliError> {
    let first = sample(client).await?;
    sleep(interval).await;
    let reading = Reading::between(Some(&first), sample(client).await?);
    let text = serde_json::to_string_pretty(&reading);
    let text = text.map_err(|error| CliError::Other(error.to_string()))?;
    println!("{text}");
    Ok(ExitCode::SUCCESS)
}

async fn sample(client: &Client) -> Result<Sample, CliError> {
    let asked = client.json(Method::GET, "tailrace-top", Bytes::new());
    match timeout(PATIENCE, asked).await {
        Ok(sample) => Ok(sample?),
        Err(_) => Err(CliError::Other(format!(
            "the daemon gave no answer within {} s: see its log",
            PATIENCE.as_secs()
        ))),
    }
}

/// Takes a sample each `interval`, beginning after the first one, for as long as somebody wants it.
fn follow(client: Client, every: Duration) -> mpsc::Receiver<Result<Sample, CliError>> {
    let (taken, samples) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            if taken.send(sample(&client).await).await.is_err() {
                return;
            }
        }
    });
    samples
}

/// What a terminal's event asks for; keys are letters while a filter is typed.
fn action(event: &Event, typing: bool) -> Option<Action> {
    let Event::Key(KeyEvent {
        code,
        modifiers,
        kind: KeyEventKind::Press | KeyEventKind::Repeat,
        ..
    }) = event
    else {
        return None;
    };
    if modifiers.contains(KeyModifiers::CONTROL) {
        return (*code == KeyCode::Char('c')).then_some(Action::Quit);
    }
    let action = match code {
        KeyCode::Esc => Action::Back,
        KeyCode::Enter => Action::Accept,
        KeyCode::Backspace => Action::Erase,
        KeyCode::Tab => Action::NextPane,
        KeyCode::BackTab => Action::PreviousPane,
        KeyCode::Up => Action::Rows(-1),
        KeyCode::Down => Action::Rows(1),
        KeyCode::PageUp => Action::Pages(-1),
        KeyCode::PageDown => Action::Pages(1),
        KeyCode::Home => Action::Top,
        KeyCode::End => Action::Bottom,
        KeyCode::Char(letter) if typing => Action::Type(*letter),
        KeyCode::Char('q') => Action::Quit,
        KeyCode::Char('h' | '?') => Action::Help,
        KeyCode::Char('s' | '>' | '.') => Action::NextColumn,
        KeyCode::Char('<' | ',') => Action::PreviousColumn,
        KeyCode::Char('r') => Action::Reverse,
        KeyCode::Char('/') => Action::Filter,
        KeyCode::Char('k') => Action::Rows(-1),
        KeyCode::Char('j') => Action::Rows(1),
        KeyCode::Char('1') => Action::Pane(Pane::Peers),
        KeyCode::Char('2') => Action::Pane(Pane::Routes),
        KeyCode::Char('3') => Action::Pane(Pane::Drops),
        _ => return None,
    };
    Some(action)
}

/// The terminal while it is ours. It is given back when this is dropped, and before a panic is reported.
#[derive(Debug)]
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> Result<Self, CliError> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self(terminal)),
            Err(error) => {
                // It may have come half the way.
                ratatui::restore();
                Err(no_terminal(error))
            }
        }
    }

    fn draw(&mut self, model: &mut Model, theme: Theme) -> Result<(), CliError> {
        let drawn = self.0.draw(|frame| draw::draw(frame, model, theme));
        drawn.map(|_| ()).map_err(no_terminal)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn no_terminal(error: io::Error) -> CliError {
    CliError::Other(format!(
        "the terminal cannot be used ({error}): `tailrace top --json` needs none"
    ))
}

/// The signals that end a program, so that the terminal is given back before.
#[derive(Debug)]
struct Signals([(u8, Signal); 3]);

impl Signals {
    fn catch() -> Result<Self, CliError> {
        let catch = |kind: SignalKind| {
            let caught = signal(kind)
                .map_err(|error| CliError::Other(format!("cannot catch signals: {error}")))?;
            // As a shell tells that a signal ended a program.
            let code = 128 + u8::try_from(kind.as_raw_value()).unwrap_or_default();
            Ok::<_, CliError>((code, caught))
        };
        Ok(Self([
            catch(SignalKind::terminate())?,
            catch(SignalKind::interrupt())?,
            catch(SignalKind::hangup())?,
        ]))
    }

    /// Waits for one, and returns the exit code that tells of it.
    async fn next(&mut self) -> ExitCode {
        let [(terminate, a), (interrupt, b), (hangup, c)] = &mut self.0;
        ExitCode::from(tokio::select! {
            _ = a.recv() => *terminate,
            _ = b.recv() => *interrupt,
            _ = c.recv() => *hangup,
        })
    }
}
