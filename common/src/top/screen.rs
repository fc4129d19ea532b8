//! The screen: what is shown, what keys do to it, and how it is drawn. No terminal is needed for
//! any of this, so tests see what an operator sees.

use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row as Cells, Table};

use super::options::Interval;
use super::sample::{Column, Format, Load, Order, Row, Sample, Tone};
use super::write::{WORDS_BEFORE, Words, cells, efficiency, widths};
use crate::clock::Rate;

const KEYS: &str =
    "q quit  ←→ sort by  r reverse  p pause  +- interval  ↑↓ PgUp PgDn scroll  Home top";

/// Cells of a worker's bar.
const BAR: usize = 10;
/// Most lines for workers; what does not fit is counted.
const WORKER_LINES: usize = 4;
/// A name longer than this is cut: it must leave room for numbers.
const LONGEST_NAME: usize = 32;

/// What comes next after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    Go,
    /// Go on, and read this often.
    Every(Interval),
    /// End.
    End,
}

/// What is shown.
#[derive(Debug)]
pub struct View {
    words: Words,
    columns: &'static [Column],
    order: Order,
    interval: Interval,
    rate: Rate,
    paused: bool,
    /// Rows above the first that is shown.
    scroll: usize,
    sample: Option<Sample>,
    trouble: Option<String>,
}

impl View {
    /// Nothing yet. `rate` is that of the processor's counter.
    pub fn new(
        words: Words,
        columns: &'static [Column],
        order: Order,
        interval: Interval,
        rate: Rate,
    ) -> Self {
        Self {
            words,
            columns,
            order,
            interval,
            rate,
            paused: false,
            scroll: 0,
            sample: None,
            trouble: None,
        }
    }

    /// The daemon answered; a sample, unless it is the first answer.
    pub fn take(&mut self, sample: Option<Sample>) {
        self.trouble = None;
        if !self.paused && sample.is_some() {
            self.sample = sample;
            self.sort();
        }
    }

    /// The daemon did not answer. What was seen last stays.
    pub fn lose(&mut self, why: String) {
        self.trouble = Some(why);
    }

    /// What a key does.
    pub fn press(&mut self, key: KeyEvent) -> Next {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => return Next::End,
            KeyCode::Char('q') | KeyCode::Esc => return Next::End,
            KeyCode::Left | KeyCode::Char('<') => self.sort_by(-1),
            KeyCode::Right | KeyCode::Char('>') => self.sort_by(1),
            KeyCode::Char('r') => {
                self.order.reverse = !self.order.reverse;
                self.sort();
            }
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('+') => return self.every(2.0),
            KeyCode::Char('-') => return self.every(0.5),
            KeyCode::Up => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::Down => self.scroll += 1,
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(10),
            KeyCode::PageDown => self.scroll += 10,
            KeyCode::Home => self.scroll = 0,
            _ => {}
        }
        let rows = self.sample.as_ref().map_or(0, |sample| sample.rows.len());
        self.scroll = self.scroll.min(rows.saturating_sub(1));
        Next::Go
    }

    fn every(&mut self, factor: f64) -> Next {
        self.interval = self.interval.scaled(factor);
        Next::Every(self.interval)
    }

    /// Moves the order to the column beside; the name is left of the first.
    fn sort_by(&mut self, step: isize) {
        let place = self.order.column.map_or(0, |column| column + 1);
        let place = place.saturating_add_signed(step).min(self.columns.len());
        self.order.column = place.checked_sub(1);
        self.sort();
    }

    fn sort(&mut self) {
        if let Some(sample) = &mut self.sample {
            self.order.sort(&mut sample.rows);
        }
    }

    /// Draws all of it.
    pub fn draw(&self, frame: &mut Frame) {
        let width = usize::from(frame.area().width);
        let workers = self
            .sample
            .as_ref()
            .map_or(Vec::new(), |sample| worker_lines(&sample.workers, width));
        let height = u16::try_from(workers.len()).unwrap_or(u16::MAX);
        let areas = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(height),
            Constraint::Length(1),
            Constraint::Min(0),
            Constraint::Length(1),
        ]);
        let [head, load, work, table, foot] = areas.areas(frame.area());
        let bold = Style::new().add_modifier(Modifier::BOLD);
        frame.render_widget(Paragraph::new(Line::styled(self.head(), bold)), head);
        frame.render_widget(Paragraph::new(workers), load);
        match &self.sample {
            Some(sample) => {
                let text = efficiency(sample, self.words.work, self.rate);
                frame.render_widget(Paragraph::new(text), work);
                self.draw_rows(frame, table, sample);
            }
            None => {
                let text = format!(
                    "the first numbers come with the second look, {}",
                    self.pace()
                );
                frame.render_widget(Paragraph::new(text), table);
            }
        }
        frame.render_widget(self.foot(), foot);
    }

    fn pace(&self) -> String {
        format!("every {} s", self.interval.get().as_secs_f64())
    }

    fn head(&self) -> String {
        let count = self.sample.as_ref().map_or(0, |sample| sample.rows.len());
        let by = self
            .order
            .column
            .and_then(|column| self.columns.get(column));
        let by = by.map_or("name", |column| column.title);
        let paused = if self.paused { "  PAUSED" } else { "" };
        let (daemon, thing) = (self.words.daemon, self.words.thing);
        let pace = self.pace();
        format!("{daemon} top  {pace}  {count} {thing}s by {by}{paused}")
    }

    fn foot(&self) -> Paragraph<'_> {
        match &self.trouble {
            Some(why) => Paragraph::new(format!("{why}; trying again"))
                .style(Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)),
            None => Paragraph::new(KEYS).style(Style::new().add_modifier(Modifier::DIM)),
        }
    }

    fn draw_rows(&self, frame: &mut Frame, area: Rect, sample: &Sample) {
        let mut lines = cells(&self.words, self.columns, &sample.rows);
        for line in &mut lines {
            if let Some(name) = line.first_mut() {
                *name = cut(name);
            }
        }
        let sorted = self.order.column.map_or(0, |column| column + WORDS_BEFORE);
        if let Some(title) = lines.first_mut().and_then(|header| header.get_mut(sorted)) {
            // Names stand upwards, numbers downwards, unless reversed.
            let up = self.order.column.is_none() != self.order.reverse;
            title.push(if up { '▲' } else { '▼' });
        }
        let widths = widths(&lines);
        let last = widths.len().saturating_sub(1);
        let wide = widths.iter().sum::<usize>() + 2 * last;
        let spacing = if wide > usize::from(area.width) { 1 } else { 2 };
        let constraints = widths.iter().enumerate().map(|(index, &width)| {
            let width = u16::try_from(width).unwrap_or(u16::MAX);
            if index == last {
                Constraint::Fill(1)
            } else {
                Constraint::Length(width)
            }
        });
        let cell = |index: usize, text: String| {
            let numbers = index >= WORDS_BEFORE && index < last;
            let side = if numbers {
                Alignment::Right
            } else {
                Alignment::Left
            };
            Cell::new(Line::from(text).alignment(side))
        };
        let mut lines = lines.into_iter();
        let header = lines.next().unwrap_or_default().into_iter().enumerate();
        let header = Cells::new(header.map(|(index, text)| cell(index, text)));
        let header = header.style(Style::new().add_modifier(Modifier::REVERSED));
        let row = |(line, row): (Vec<String>, &Row)| {
            let style = row.state.map_or(Style::new(), |state| style(state.tone));
            let cells = line.into_iter().enumerate().map(|(index, text)| {
                let cell = cell(index, text);
                if index + 1 == WORDS_BEFORE {
                    cell.style(style)
                } else {
                    cell
                }
            });
            Cells::new(cells)
        };
        let rows = lines.zip(&sample.rows).skip(self.scroll).map(row);
        let table = Table::new(rows, constraints)
            .header(header)
            .column_spacing(spacing);
        frame.render_widget(table, area);
    }
}

/// The style of a state.
fn style(tone: Tone) -> Style {
    match tone {
        Tone::Good => Style::new().fg(Color::Green),
        Tone::Idle => Style::new().add_modifier(Modifier::DIM),
        Tone::Warning => Style::new().fg(Color::Yellow),
        Tone::Bad => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
    }
}

fn cut(name: &str) -> String {
    if name.chars().count() <= LONGEST_NAME {
        return name.to_owned();
    }
    let start: String = name.chars().take(LONGEST_NAME - 1).collect();
    start + "…"
}

/// A bar a worker, as many as fit side by side.
fn worker_lines(workers: &[Load], width: usize) -> Vec<Line<'static>> {
    let texts = workers.iter().enumerate().map(|(index, worker)| {
        let busy = worker.busy.unwrap_or(0.0);
        let full = (0..BAR)
            .filter(|&cell| busy * (BAR as f64) > cell as f64 + 0.5)
            .count();
        let bar = "█".repeat(full) + &"░".repeat(BAR - full);
        let cpu = worker
            .cpu
            .map_or(String::new(), |cpu| format!(" CPU {cpu}"));
        let share = Format::Share.write(worker.busy);
        (format!("worker {index}{cpu} {bar} {share:>4}  "), busy)
    });
    let texts: Vec<(String, f64)> = texts.collect();
    let widest = texts.iter().map(|(text, _)| text.chars().count()).max();
    let beside = (width / widest.unwrap_or(1).max(1)).max(1);
    let shown = beside * WORKER_LINES;
    let mut lines: Vec<Line<'static>> = texts
        .chunks(beside)
        .take(WORKER_LINES)
        .map(|chunk| chunk.iter().map(worker_span).collect::<Vec<_>>().into())
        .collect();
    if texts.len() > shown {
        lines.push(format!("and {} more workers", texts.len() - shown).into());
    }
    lines
}

fn worker_span((text, busy): &(String, f64)) -> Span<'static> {
    let color = match *busy {
        busy if busy > 0.9 => Color::Red,
        busy if busy > 0.7 => Color::Yellow,
        _ => Color::Green,
    };
    Span::styled(text.clone(), Style::new().fg(color))
}
