//! The client subcommands: ask the daemon, print its answer for a person or as JSON.

use std::io::Write;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use towpath_common::attach::{Device, Kind};
use towpath_common::cli::Place;
use towpath_common::config::Name;
use towpath_common::control::compare::{CompareError, compare};
use towpath_common::control::print::print;
use towpath_common::control::{Answer, Client};
use vblk::config::{Config, Diff, Sources};
use vblk::control::{Reload, Resize, Stats, Target as SnapshotTarget};
use vblk::mirror::MirrorOrder;
use vblk::serve::count_disks;
use vblk::service::{DiskStatus, GroupStatus, Resized, SlowRequest, Snapshot};
use vblk::settings::Settings;

use crate::backups;
use crate::cli::Target;
use crate::report;

/// A mistake in words that are not the parser's.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(String);

/// How often `stats --watch` prints.
const WATCH_PERIOD: Duration = Duration::from_secs(1);

/// `vblk disk list`.
pub(crate) fn disk_list(target: &Target, out: &mut impl Write) -> Result<()> {
    let answer: Answer<Vec<DiskStatus>> = Client::new(target.control.as_path()).get("/v1/disks")?;
    Ok(print(&answer, target.json, out, |disks| {
        report::disk_list(disks)
    })?)
}

/// `vblk disk show [NAME]`.
pub(crate) fn disk_show(target: &Target, name: Option<&str>, out: &mut impl Write) -> Result<()> {
    let client = Client::new(target.control.as_path());
    let Some(name) = name else {
        let answer: Answer<Vec<DiskStatus>> = client.get("/v1/disks")?;
        return Ok(print(&answer, target.json, out, |disks| {
            disks
                .iter()
                .map(report::disk)
                .collect::<Vec<_>>()
                .join("\n")
        })?);
    };
    // Names are safe in a path; what is not a name is not a disk either.
    let name: Name = name.parse()?;
    let answer: Answer<DiskStatus> = client.get(&format!("/v1/disks/{name}"))?;
    Ok(print(&answer, target.json, out, report::disk)?)
}

/// `vblk attach NAME`.
pub(crate) fn attach(
    target: &Target,
    name: &Name,
    place: &Place,
    (queues, bus): (u16, Option<&str>),
    out: &mut impl Write,
) -> Result<()> {
    let client = Client::new(target.control.as_path());
    let answer: Answer<DiskStatus> = client.get(&format!("/v1/disks/{name}"))?;
    let Some(disk) = &answer.data else {
        return Ok(print(&answer, target.json, out, report::disk)?);
    };
    if !(1..=disk.queues).contains(&queues) {
        let most = disk.queues;
        let text = format!("--queues {queues}: {name} is served with 1 to {most} queues");
        return Err(Usage(text).into());
    }
    let device = Device {
        kind: Kind::Disk,
        name: name.to_string(),
        socket: disk.socket.as_path().into(),
        mode: disk.mode,
        queues,
    };
    Ok(write!(out, "{}", place.attach(&device, bus)?)?)
}

/// `vblk disk set NAME KEY=VALUE…`.
pub(crate) fn disk_set(
    target: &Target,
    name: &Name,
    words: &[String],
    out: &mut impl Write,
) -> Result<()> {
    let settings = Settings::of_words(words).map_err(Usage)?;
    let client = Client::new(target.control.as_path());
    let answer: Answer<DiskStatus> = client.post(&format!("/v1/disks/{name}"), &settings)?;
    Ok(print(&answer, target.json, out, report::disk)?)
}

/// `vblk disk clear NAME`.
pub(crate) fn disk_clear(target: &Target, name: &Name, out: &mut impl Write) -> Result<()> {
    let client = Client::new(target.control.as_path());
    let answer: Answer<DiskStatus> = client.post(&format!("/v1/disks/{name}/clear"), &())?;
    Ok(print(&answer, target.json, out, report::disk)?)
}

/// `vblk disk resize NAME [SIZE]`.
pub(crate) fn disk_resize(
    target: &Target,
    name: &Name,
    order: Resize,
    out: &mut impl Write,
) -> Result<()> {
    let client = Client::new(target.control.as_path());
    let answer: Answer<Resized> = client.post(&format!("/v1/disks/{name}/resize"), &order)?;
    let description = answer.description.clone();
    Ok(print(&answer, target.json, out, |_| {
        format!("{description}\n")
    })?)
}

/// `vblk snapshot NAME PATH`.
pub(crate) fn snapshot(
    target: &Target,
    name: &Name,
    path: &Path,
    out: &mut impl Write,
) -> Result<()> {
    let client = Client::new(target.control.as_path());
    // A volume's name is no path.
    let path = if path.to_string_lossy().starts_with("lvm:") {
        path.to_owned()
    } else {
        std::path::absolute(path)?
    };
    let order = SnapshotTarget { path };
    let answer: Answer<Snapshot> = client.post(&format!("/v1/disks/{name}/snapshot"), &order)?;
    if answer.data.is_some_and(|taken| taken.copying) {
        eprintln!("{}", answer.description);
        return backups::follow(target, name, out);
    }
    let description = answer.description.clone();
    Ok(print(&answer, target.json, out, |_| {
        format!("{description}\n")
    })?)
}

/// `vblk mirror show NAME`, and its orders.
pub(crate) fn mirror(
    target: &Target,
    name: &Name,
    order: Option<&MirrorOrder>,
    out: &mut impl Write,
) -> Result<()> {
    let client = Client::new(target.control.as_path());
    let answer: Answer<DiskStatus> = match order {
        None => client.get(&format!("/v1/disks/{name}"))?,
        Some(order) => client.post(&format!("/v1/disks/{name}/mirror"), order)?,
    };
    Ok(print(&answer, target.json, out, report::mirror)?)
}

/// `vblk group list`.
pub(crate) fn group_list(target: &Target, out: &mut impl Write) -> Result<()> {
    let client = Client::new(target.control.as_path());
    let answer: Answer<Vec<GroupStatus>> = client.get("/v1/groups")?;
    Ok(print(&answer, target.json, out, |groups| {
        report::groups(groups)
    })?)
}

/// `vblk group set NAME KEY=VALUE…`.
pub(crate) fn group_set(
    target: &Target,
    name: &Name,
    words: &[String],
    out: &mut impl Write,
) -> Result<()> {
    let settings = Settings::of_words(words).map_err(Usage)?;
    let client = Client::new(target.control.as_path());
    let answer: Answer<GroupStatus> = client.post(&format!("/v1/groups/{name}"), &settings)?;
    Ok(print(&answer, target.json, out, |group| {
        report::groups(std::slice::from_ref(group))
    })?)
}

/// `vblk disk release NAME`.
pub(crate) fn disk_release(target: &Target, name: &str, out: &mut impl Write) -> Result<()> {
    let client = Client::new(target.control.as_path());
    let name: towpath_common::config::Name = name.parse()?;
    let answer: Answer<()> = client.post(&format!("/v1/disks/{name}/release"), &())?;
    let description = answer.description.clone();
    Ok(print(&answer, target.json, out, |()| {
        format!("{description}\n")
    })?)
}

/// `vblk stats`.
pub(crate) fn stats(target: &Target, watch: bool, out: &mut impl Write) -> Result<()> {
    let client = Client::new(target.control.as_path());
    let mut before: Answer<Stats> = client.get("/v1/stats")?;
    if !watch {
        return Ok(print(&before, target.json, out, report::stats)?);
    }
    loop {
        sleep(WATCH_PERIOD);
        let now: Answer<Stats> = client.get("/v1/stats")?;
        print(&now, target.json, out, |stats| match &before.data {
            Some(before) => report::rates(before, stats, WATCH_PERIOD),
            None => String::new(),
        })?;
        before = now;
    }
}

/// `vblk slow [NAME]`.
pub(crate) fn slow(
    target: &Target,
    name: Option<&Name>,
    count: usize,
    out: &mut impl Write,
) -> Result<()> {
    let client = Client::new(target.control.as_path());
    let path = name.map_or("/v1/slow".to_owned(), |name| {
        format!("/v1/disks/{name}/slow")
    });
    let mut answer: Answer<Vec<SlowRequest>> = client.get(&path)?;
    if let Some(slow) = &mut answer.data {
        slow.truncate(count);
    }
    Ok(print(&answer, target.json, out, |slow| report::slow(slow))?)
}

/// `vblk reload`.
pub(crate) fn reload(target: &Target, dry_run: bool, out: &mut impl Write) -> Result<()> {
    let client = Client::new(target.control.as_path());
    let answer: Answer<Diff> = client.post("/v1/reload", &Reload { dry_run })?;
    let description = answer.description.clone();
    Ok(print(&answer, target.json, out, |_| {
        format!("{description}\n")
    })?)
}

/// `vblk config diff`; whether there is a difference.
pub(crate) fn config_diff(target: &Target, out: &mut impl Write) -> Result<bool, CompareError> {
    compare::<Diff>(target.control.as_path(), target.json, out)
}

/// `vblk check`.
pub(crate) fn check(sources: &Sources, json: bool, out: &mut impl Write) -> Result<()> {
    let config = Config::load(sources)?;
    let description = format!("valid: {}", count_disks(config.disks.len()));
    let answer = Answer::success(description.clone(), config);
    Ok(print(&answer, json, out, |config| {
        format!("{description}\n{}", report::config(config))
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    use axum::extract::Path as UrlPath;
    use axum::http::StatusCode;
    use axum::{Router, routing::get};
    use towpath_common::control::server::{self, Patience};
    use towpath_common::control::{ControlSocket, Status};

    use crate::report::tests::sample_disk;

    async fn one(UrlPath(name): UrlPath<String>) -> Answer<DiskStatus> {
        match name.as_str() {
            "web" => Answer::warning("odd", sample_disk(1)),
            _ => Answer::failed(StatusCode::NOT_FOUND, "there is no such disk"),
        }
    }

    /// A daemon that has one disk, on a thread that ends with the test process.
    fn daemon(json: bool) -> (Target, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let socket = ControlSocket::bind(&dir.path().join("c.sock")).unwrap();
        let control = socket.path().to_str().unwrap().parse().unwrap();
        thread::spawn(move || {
            let list = || async { Answer::success("1 disk", vec![sample_disk(1)]) };
            let routes = Router::new()
                .route("/v1/disks", get(list))
                .route("/v1/disks/{name}", get(one));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let listener = socket.listener().unwrap();
            runtime
                .block_on(server::serve(listener, routes, Patience::default()))
                .unwrap();
        });
        (Target { json, control }, dir)
    }

    #[test]
    fn text_is_the_report() {
        let (target, _dir) = daemon(false);
        let (mut list, mut shown, mut all) = (Vec::new(), Vec::new(), Vec::new());
        disk_list(&target, &mut list).unwrap();
        assert_eq!(
            String::from_utf8(list).unwrap(),
            report::disk_list(&[sample_disk(1)])
        );
        disk_show(&target, Some("web"), &mut shown).unwrap();
        assert_eq!(
            String::from_utf8(shown).unwrap(),
            report::disk(&sample_disk(1))
        );
        disk_show(&target, None, &mut all).unwrap();
        assert_eq!(
            String::from_utf8(all).unwrap(),
            report::disk(&sample_disk(1))
        );
    }

    #[test]
    fn json_is_the_answer_whatever_it_says() {
        let (target, _dir) = daemon(true);
        let mut out = Vec::new();
        disk_show(&target, Some("web"), &mut out).unwrap();
        let answer: Answer<DiskStatus> = serde_json::from_slice(&out).unwrap();
        assert_eq!(
            (answer.status, answer.data),
            (Status::Warning, Some(sample_disk(1)))
        );
        let mut out = Vec::new();
        let error = disk_show(&target, Some("db"), &mut out).unwrap_err();
        assert_eq!(error.to_string(), "there is no such disk");
        let answer: Answer<DiskStatus> = serde_json::from_slice(&out).unwrap();
        assert_eq!(answer.status, Status::Failed);
    }

    #[test]
    fn what_cannot_be_a_name_is_not_asked_for() {
        let (target, _dir) = daemon(false);
        let error = disk_show(&target, Some("../status"), &mut Vec::new()).unwrap_err();
        assert!(error.is::<towpath_common::config::ValueError>(), "{error}");
    }
}
