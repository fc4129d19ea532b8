//! Standbys that are shell scripts, and a wait in this process.

use super::*;

fn in_runtime<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async { test().await })
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

fn held(count: usize) -> Vec<(String, OwnedFd)> {
    let file = |n: usize| {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = rustix::fs::memfd_create("t", flags).unwrap();
        rustix::io::write(&file, format!("{n}").as_bytes()).unwrap();
        (format!("towpath-{n}"), file)
    };
    (0..count).map(file).collect()
}

#[test]
fn it_is_given_all_that_is_held() {
    for count in [0, 1, 600] {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut given = vec![
            (
                "other".to_owned(),
                std::fs::File::open("/dev/null").unwrap().into(),
            ),
            (NAME.to_owned(), theirs.into()),
        ];
        let wait = Wait::among(&mut given).unwrap();
        assert_eq!(given.len(), 1);
        let got = std::thread::scope(|scope| {
            let waits = scope.spawn(|| wait.wait().unwrap().unwrap());
            in_runtime(|| async {
                let mut standby = Standby {
                    child: Some(Command::new("true").spawn().unwrap()),
                    socket: UnixStream::from_std(ours).unwrap(),
                    here: false,
                };
                assert!(standby.heard().await.unwrap());
                standby.go(&held(count)).unwrap().wait().unwrap();
            });
            waits.join().unwrap()
        });
        assert_eq!(got.len(), count);
        for (n, (name, fd)) in got.into_iter().enumerate() {
            assert_eq!(name, format!("towpath-{n}"));
            let mut file = std::fs::File::from(fd);
            file.rewind().unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, n.to_string());
        }
    }
}

#[test]
fn one_that_is_not_needed_is_told_so() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let wait = Wait(theirs.into());
    let waits = std::thread::spawn(|| wait.wait().unwrap().is_none());
    let mut text = [0; 8];
    assert_eq!(rustix::io::read(&ours, &mut text).unwrap(), HERE.len());
    drop(ours);
    assert!(waits.join().unwrap());
}

#[test]
fn one_that_ends_is_told_from_one_that_does_not_know() {
    in_runtime(|| async {
        let mut fails = Standby::start(shell("exit 7")).unwrap();
        assert!(!fails.heard().await.unwrap());
        assert_eq!(fails.ended().await.and_then(|s| s.code()), Some(7));
        let mut ignores = Standby::start(shell("exec sleep 1000 3>&-")).unwrap();
        assert!(!ignores.heard().await.unwrap());
        assert_eq!(ignores.ended().await, None);
        // What is not needed does not stay.
        let pid = ignores.child.as_ref().map(Child::id).unwrap();
        drop(ignores);
        assert!(!std::path::Path::new(&format!("/proc/{pid}/exe")).exists());
    });
}

#[test]
fn one_that_is_gone_cannot_be_given_the_word() {
    in_runtime(|| async {
        let script = "printf here >&3; exec 3>&-";
        let mut standby = Standby::start(shell(script)).unwrap();
        assert!(standby.heard().await.unwrap());
        assert!(standby.ended().await.is_some());
        assert!(standby.go(&held(3)).is_err());
    });
}
