//! The manager of one process: what it hears, and from whom.

use super::*;

fn manager() -> Manager {
    let arguments = Vec::new();
    let program = PathBuf::from("true");
    Manager::new(Daemon { program, arguments }).unwrap()
}

fn in_runtime(test: impl FnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async { test() });
}

fn some_fd() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

#[test]
fn what_is_given_is_held_under_its_name_until_it_is_removed() {
    in_runtime(|| {
        let mut manager = manager();
        let names = |manager: &Manager| -> Vec<String> {
            manager.held.iter().map(|(name, _)| name.clone()).collect()
        };
        manager.message("FDSTORE=1\nFDNAME=a\nFDPOLL=0\n", vec![some_fd()]);
        manager.message("FDNAME=b\nFDSTORE=1\n", vec![some_fd(), some_fd()]);
        assert_eq!(names(&manager), ["a", "b", "b"]);
        manager.message("FDSTOREREMOVE=1\nFDNAME=b\n", Vec::new());
        assert_eq!(names(&manager), ["a"]);
        manager.message("FDSTORE=1\nFDNAME=with:colon\n", vec![some_fd()]);
        manager.message("STATUS=FDSTORE=1\n", vec![some_fd()]);
        assert_eq!(names(&manager), ["a"]);
        assert!(!manager.ready);
        manager.message("READY=1\nSTATUS=serving\n", Vec::new());
        assert!(manager.ready);
    });
}

#[test]
fn one_that_ends_early_again_and_again_is_given_pauses() {
    let ms = Duration::from_millis;
    let pauses: Vec<Duration> = (0..6).map(pause).collect();
    assert_eq!(pauses, [ms(0), ms(0), ms(0), ms(10), ms(20), ms(40)]);
    assert_eq!(pause(u32::MAX), ms(1000));
}

#[test]
fn there_is_a_limit() {
    in_runtime(|| {
        let mut manager = manager();
        manager.most = 3;
        for _ in 0..=manager.most {
            manager.message("FDSTORE=1\nFDNAME=a\n", vec![some_fd()]);
        }
        assert_eq!(manager.held.len(), manager.most);
    });
}

#[test]
fn a_stranger_is_not_heard() {
    in_runtime(|| {
        let mut manager = manager();
        let path = manager.inbox.directory.join("notify");
        let stranger = std::os::unix::net::UnixDatagram::unbound().unwrap();
        stranger.send_to(b"READY=1\n", &path).unwrap();
        let somebody = Pid::from_raw(1).unwrap();
        manager.read_all(somebody);
        assert!(!manager.ready);
        stranger.send_to(b"READY=1\n", &path).unwrap();
        manager.read_all(rustix::process::getpid());
        assert!(manager.ready);
    });
}

#[test]
fn the_directory_is_ours_alone_and_goes_with_us() {
    use std::os::unix::fs::PermissionsExt;
    in_runtime(|| {
        let inbox = Inbox::new().unwrap();
        let directory = inbox.directory.clone();
        let mode = std::fs::metadata(&directory).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        drop(inbox);
        assert!(!directory.exists());
    });
}

/// A child that ends well when it is told so over its input, and badly at its second SIGTERM;
/// the first was sent, and heard.
fn told() -> (Running, std::process::ChildStdin) {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    let script = "trap 'trap \"exit 1\" TERM; echo told' TERM; echo up; until read x; do :; done";
    let mut command = Command::new("sh");
    let command = command.args(["-c", script]).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let mut lines = BufReader::new(output.unwrap()).lines();
    let pid = Pid::from_child(&child);
    let running = Running { child, pid };
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    running.signal(Number::TERM);
    assert_eq!(lines.next().unwrap().unwrap(), "told");
    (running, input.unwrap())
}

#[test]
fn one_that_ends_to_be_followed_may_complete_what_it_has_though_it_is_to_end_for_good() {
    use std::io::Write;
    in_runtime(|| {
        let mut manager = manager();
        let (mut running, mut input) = told();
        let order = manager.stop(&running, Some(Order::Again), true);
        assert_eq!(order, Some(Order::Stop));
        input.write_all(b"end\n").unwrap();
        assert_eq!(running.child.wait().unwrap().code(), Some(0));
        // Whoever insists is heard.
        let (mut running, input) = told();
        let order = manager.stop(&running, Some(Order::Again), true);
        manager.stop(&running, order, true);
        assert_eq!(running.child.wait().unwrap().code(), Some(1));
        drop(input);
    });
}

#[test]
fn one_that_is_stopped_before_it_listens_ends_well() {
    let ended = |raw| format!("{:?}", stopped(ExitStatus::from_raw(raw)));
    assert_eq!(ended(15), format!("{:?}", ExitCode::SUCCESS));
    assert_eq!(ended(9), format!("{:?}", ExitCode::from(137)));
    assert_eq!(ended(1 << 8), format!("{:?}", ExitCode::FAILURE));
}
