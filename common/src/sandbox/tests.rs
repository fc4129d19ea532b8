//! Filters are for the life of a process, so each test runs this program again.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use super::*;

/// Tells the second run what to do.
const ORDER: &str = "TOWPATH_TEST_SANDBOX";

fn again(order: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "sandbox::tests::child", "--nocapture"]);
    command.env(ORDER, order).output().unwrap()
}

/// Not a test by itself.
#[test]
fn child() {
    let Ok(order) = std::env::var(ORDER) else {
        return;
    };
    if order.starts_with('/') {
        return;
    }
    let mode = if order == "log" { "log" } else { "enforce" };
    limit_calls(
        mode.parse().unwrap(),
        &[call(libc::SYS_personality, "a test")],
    )
    .unwrap();
    match &*order {
        "work" => {
            // What a daemon does: threads, files, memory, sockets, a panic with its backtrace.
            let thread = std::thread::spawn(|| {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("file");
                std::fs::write(&path, [7; 4096]).unwrap();
                std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
                std::fs::read(&path).unwrap().len()
            });
            assert_eq!(thread.join().unwrap(), 4096);
            let panic = std::thread::spawn(|| panic!("as asked")).join();
            assert!(panic.is_err());
            println!("worked");
        }
        "undeclared" | "log" => {
            // Own calls are let through.
            let error = rustix::net::socket(
                rustix::net::AddressFamily::INET,
                rustix::net::SocketType::STREAM,
                None,
            )
            .map(drop);
            println!("inet: {error:?}");
            let error = rustix::process::setpriority_process(None, 1);
            println!("priority: {error:?}");
        }
        "program" => {
            let error = Command::new("true").status();
            println!("process: {:?}", error.map_err(|e| e.kind()));
        }
        "intruder" => {
            let _ = rustix::process::chroot("/");
            println!("still here");
        }
        _ => unreachable!(),
    }
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn what_a_daemon_does_is_let_through() {
    assert!(said(&again("work")).contains("worked"));
}

#[test]
fn what_is_not_declared_fails_and_the_daemon_goes_on() {
    let said = said(&again("undeclared"));
    assert!(said.contains("inet: Err(Os { code: 1"), "{said}");
    assert!(said.contains("priority: Err(Os { code: 1"), "{said}");
}

#[test]
fn in_log_mode_nothing_fails() {
    let said = said(&again("log"));
    assert!(
        said.contains("inet: Ok") && said.contains("priority: Ok"),
        "{said}"
    );
}

#[test]
fn no_process_is_begun() {
    assert!(said(&again("program")).contains("process: Err(PermissionDenied)"));
}

#[test]
fn what_only_an_intruder_does_ends_the_process() {
    let output = again("intruder");
    assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{output:?}");
}

#[test]
fn every_call_has_a_reason_and_none_is_both_declared_and_fatal() {
    for call in calls::SHARED {
        assert!(!call.why.is_empty(), "{call:?}");
        assert!(
            calls::FATAL
                .iter()
                .all(|(number, _)| *number != call.number)
        );
    }
    assert!("strict".parse::<Seccomp>().is_err());
}

/// Not a test by itself.
#[test]
fn landlocked_child() {
    let Ok(dir) = std::env::var(ORDER) else {
        return;
    };
    let dir = std::path::PathBuf::from(dir);
    if !dir.is_dir() {
        return;
    }
    crate::logging::init("test", None, &[]).unwrap();
    let (inside, outside) = (dir.join("in"), dir.join("out"));
    let reach = landlock::Reach {
        all: vec![inside.clone(), "/no/such/path".into()],
        read: vec![dir.join("conf")],
    };
    assert!(landlock::hint().is_none());
    landlock::limit(&reach).unwrap();
    let Some(hint) = landlock::hint() else {
        println!("no Landlock");
        return;
    };
    assert!(
        hint.contains("/in, /no/such/path") && hint.contains("[landlock]"),
        "{hint}"
    );
    let made = |dir: &std::path::Path| std::fs::write(dir.join("new"), "x").map_err(|e| e.kind());
    let denied = Err(std::io::ErrorKind::PermissionDenied);
    assert_eq!(made(&inside), Ok(()));
    assert_eq!(made(&outside), denied);
    assert_eq!(made(&dir.join("conf")), denied);
    let read = |path: &str| {
        std::fs::read(dir.join(path))
            .map(drop)
            .map_err(|e| e.kind())
    };
    assert_eq!(read("conf/file"), Ok(()));
    assert_eq!(read("out/file"), denied);
    std::fs::read("/proc/self/maps").unwrap();
    // Threads that begin later are limited as well.
    let outside = std::thread::spawn(move || made(&outside)).join().unwrap();
    assert_eq!(outside, denied);
    println!("limited");
}

#[test]
fn files_beyond_what_is_named_are_out_of_reach() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["in", "out", "conf"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name).join("file"), "x").unwrap();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "sandbox::tests::landlocked_child", "--nocapture"]);
    let output = command.env(ORDER, dir.path()).output().unwrap();
    let said = said(&output);
    if said.contains("no Landlock") {
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(log.contains("this kernel has no Landlock"), "{log}");
        println!("skipped: this kernel has no Landlock");
        return;
    }
    assert!(said.contains("limited"), "{said}");
}
