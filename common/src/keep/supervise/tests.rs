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
