//! Where readings come from and samples go to.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::options::{Interval, Options, TopArgs};
use super::sample::{Column, Order, Reading, UnknownColumn};
use super::screen::{Next, View};
use super::watch::Watch;
use super::write::{self, Words};
use crate::clock::Clock;
use crate::control::Client;
use crate::control::client::ClientError;
use crate::control::print::PrintError;

/// How long a key may wait for a reading, and a reading for the screen.
const TICK: Duration = Duration::from_millis(100);

/// A daemon that can be looked at.
pub trait Subject {
    /// What its API answers.
    type Totals: DeserializeOwned + Send + 'static;
    /// Where.
    const PATH: &'static str;
    /// What it calls things.
    const WORDS: Words;
    /// What is shown.
    const COLUMNS: &'static [Column];
    /// The totals that count its work.
    const WORK: &'static [usize];

    /// The totals of an answer, in the order that the columns mean.
    fn reading(totals: Self::Totals) -> Reading;
}

/// Why it ended.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// A column that is not there.
    #[error(transparent)]
    Column(#[from] UnknownColumn),
    /// There was no daemon to begin with.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Nothing could be printed, or the daemon refused.
    #[error(transparent)]
    Print(#[from] PrintError),
    /// The terminal cannot be used.
    #[error("cannot use the terminal: {0}; --batch prints lines instead")]
    Terminal(io::Error),
}

impl TopError {
    /// Whether the user has to change something.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Column(_))
    }

    /// Whether the reader of our output has seen enough.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Print(error) if error.is_closed_pipe())
    }
}

/// Shows the daemon behind `control` until the user has seen enough.
///
/// # Errors
/// [`TopError`]. A daemon that goes away later is waited for.
pub fn run<S: Subject>(control: &Path, args: &TopArgs, json: bool) -> Result<(), TopError> {
    let first = S::COLUMNS.first().map_or("name", |column| column.key);
    let wanted = args.sort.as_deref().unwrap_or(first);
    let order = Order::by(wanted, args.reverse, S::COLUMNS)?;
    let options = args.options(json, io::stdout().is_terminal());
    let client = Client::new(control);
    let mut watch = Watch::new(S::COLUMNS, S::WORK);
    watch.take(Instant::now(), read::<S>(&client)?);
    if options.batch {
        print_lines::<S>(&client, watch, order, options, &mut io::stdout().lock())
    } else {
        draw::<S>(client, watch, order, options.interval)
    }
}

/// Asks once.
fn read<S: Subject>(client: &Client) -> Result<Reading, TopError> {
    let answer = client.get::<S::Totals>(S::PATH)?;
    let data = answer.data.ok_or(PrintError::Failed(answer.description))?;
    Ok(S::reading(data))
}

/// A table or an object after each interval.
fn print_lines<S: Subject>(
    client: &Client,
    mut watch: Watch,
    order: Order,
    options: Options,
    out: &mut impl Write,
) -> Result<(), TopError> {
    let rate = Clock::new().rate();
    let mut left = options.count;
    while left != Some(0) {
        thread::sleep(options.interval.get());
        let text = match read::<S>(client) {
            Ok(reading) => watch.take(Instant::now(), reading).map(|mut sample| {
                order.sort(&mut sample.rows);
                if options.json {
                    write::json(&S::WORDS, S::COLUMNS, &sample).to_string()
                } else {
                    write::text(&S::WORDS, S::COLUMNS, &sample, rate)
                }
            }),
            Err(error) => {
                watch.lose();
                Some(if options.json {
                    json!({ "error": error.to_string() }).to_string()
                } else {
                    format!("{error}\n")
                })
            }
        };
        // The first answer after an outage has nothing to be compared with.
        let Some(text) = text else { continue };
        writeln!(out, "{text}")
            .and_then(|()| out.flush())
            .map_err(PrintError::from)?;
        left = left.map(|left| left - 1);
    }
    Ok(())
}

/// The terminal, set up for drawing; as it was before once this is dropped. A panic restores it,
/// too, and a signal ends the program as a key does.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> io::Result<Self> {
        ratatui::try_init().map(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What the threads beside the screen tell it.
enum News {
    Read(Instant, Result<Reading, TopError>),
    End,
}

fn draw<S: Subject>(
    client: Client,
    mut watch: Watch,
    order: Order,
    interval: Interval,
) -> Result<(), TopError> {
    let rate = Clock::new().rate();
    let mut view = View::new(S::WORDS, S::COLUMNS, order, interval, rate);
    let (tell, news) = channel();
    let end = tell.clone();
    await_signals(end).map_err(TopError::Terminal)?;
    let (pace, paced) = channel();
    thread::spawn(move || keep_reading::<S>(&client, interval.get(), &paced, &tell));
    let mut screen = Screen::open().map_err(TopError::Terminal)?;
    let mut stale = true;
    loop {
        if stale {
            let drawn = screen.0.draw(|frame| view.draw(frame));
            drawn.map_err(TopError::Terminal)?;
        }
        // A key, or another size.
        stale = event::poll(TICK).map_err(TopError::Terminal)?;
        if stale
            && let Event::Key(key) = event::read().map_err(TopError::Terminal)?
            && key.kind != KeyEventKind::Release
        {
            match view.press(key) {
                Next::Go => {}
                Next::Every(interval) => drop(pace.send(interval.get())),
                Next::End => return Ok(()),
            }
        }
        for one in news.try_iter() {
            stale = true;
            match one {
                News::Read(at, Ok(reading)) => view.take(watch.take(at, reading)),
                News::Read(_, Err(error)) => {
                    watch.lose();
                    view.lose(error.to_string());
                }
                News::End => return Ok(()),
            }
        }
    }
}

/// Reads for ever, on a thread of its own: a daemon that hangs does not hold up the keys.
fn keep_reading<S: Subject>(
    client: &Client,
    mut interval: Duration,
    paced: &Receiver<Duration>,
    tell: &Sender<News>,
) {
    let mut next = Instant::now() + interval;
    loop {
        match paced.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(changed) => {
                interval = changed;
                next = next.min(Instant::now() + interval);
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let reading = read::<S>(client);
        if tell.send(News::Read(Instant::now(), reading)).is_err() {
            return;
        }
        next = (next + interval).max(Instant::now());
    }
}

/// Tells of the first signal that would end the program with the terminal as it is.
fn await_signals(tell: Sender<News>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut terminate, mut hangup, mut interrupt) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
            signal(SignalKind::interrupt())?,
        )
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        drop(tell.send(News::End));
    });
    Ok(())
}
