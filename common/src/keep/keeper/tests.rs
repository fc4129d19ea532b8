//! Things kept by a manager that is not there, taken back by the next process.

use super::*;

fn note(name: &str, text: &str) -> Kept {
    let mut kept = Kept::new("note", name, &text).unwrap();
    kept.keep("out", std::io::stdout()).unwrap();
    kept
}

fn said(all: &[(Place, Kept)]) -> Vec<(String, String)> {
    let say = |kept: &Kept| (kept.name().to_owned(), kept.body().unwrap());
    all.iter().map(|(_, kept)| say(kept)).collect()
}

#[test]
fn a_successor_finds_the_latest_of_each() {
    let first = Keeper::here(Vec::new());
    let (mut a, mut b, mut c) = (first.place(), first.place(), first.place());
    for text in ["1", "2", "3"] {
        a.put(&note("a", text)).unwrap();
    }
    b.put(&note("b", "4")).unwrap();
    c.put(&note("c", "5")).unwrap();
    c.clear();
    assert_eq!(first.shelf().len(), 2);
    let second = Keeper::here(first.shelf());
    assert!(second.claim("note", "c").is_none() && second.claim("other", "a").is_none());
    let mut all = second.claim_rest(|_| false);
    let expected = [("a", "3"), ("b", "4")].map(|(n, t)| (n.to_owned(), t.to_owned()));
    assert_eq!(said(&all), expected);
    assert!(all[0].1.take("out").is_some());
    assert!(second.claim_rest(|_| false).is_empty(), "only once");
    all[0].0.put(&note("a", "6")).unwrap();
    all[1].0.clear();
    let third = Keeper::here(second.shelf());
    assert_eq!(
        said(&third.claim_rest(|_| false)),
        [("a".to_owned(), "6".to_owned())]
    );
}

#[test]
fn of_two_versions_the_later_counts_and_the_other_is_removed() {
    let first = Keeper::here(Vec::new());
    for text in ["old", "new"] {
        // Died before it could remove the old one.
        first.place().put(&note("a", text)).unwrap();
    }
    assert_eq!(first.shelf().len(), 2);
    let second = Keeper::here(first.shelf());
    assert_eq!(
        said(&second.claim_rest(|_| false)),
        [("a".to_owned(), "new".to_owned())]
    );
    assert_eq!(second.shelf().len(), 1);
}

#[test]
fn what_cannot_be_read_is_removed_and_the_rest_lives() {
    let first = Keeper::here(Vec::new());
    first.place().put(&note("a", "well")).unwrap();
    let mut newer = note("b", "from the future");
    newer.head.version = VERSION_AFTER;
    first.place().put(&newer).unwrap();
    let mut shelf = first.shelf();
    shelf.push((
        "towpath-99".to_owned(),
        std::fs::File::open("/dev/null").unwrap().into(),
    ));
    shelf.push((
        "unknown".to_owned(),
        std::fs::File::open("/dev/null").unwrap().into(),
    ));
    let second = Keeper::here(shelf);
    assert_eq!(
        said(&second.claim_rest(|_| false)),
        [("a".to_owned(), "well".to_owned())]
    );
    let names: Vec<String> = second.shelf().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["towpath-1", "unknown"]);
    let mut place = second.place();
    place.put(&note("c", "later")).unwrap();
    assert_eq!(place.names, ["towpath-100"], "a name is never used again");
}

#[test]
fn what_the_manager_would_drop_is_not_given_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let _manager = UnixDatagram::bind(&path).unwrap();
    let keeper = Keeper::new(Shelf::Manager(path, 2), Vec::new());
    let mut place = keeper.place();
    place.put(&note("a", "1")).unwrap();
    // For a moment there are two of it.
    place.put(&note("a", "2")).unwrap();
    let mut other = keeper.place();
    other.put(&note("b", "1")).unwrap();
    let refused = keeper.place().put(&note("c", "1")).unwrap_err().to_string();
    assert!(refused.contains("FileDescriptorStoreMax="), "{refused}");
    assert_eq!(keeper.failures(), 1);
    other.clear();
    keeper.place().put(&note("c", "1")).unwrap();
}

const VERSION_AFTER: u32 = super::super::VERSION + 1;

#[test]
fn the_manager_is_told_as_sd_notify_describes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let keeper = Keeper::new(Shelf::Manager(path, 100), Vec::new());
    let mut place = keeper.place();
    place.put(&note("a", "1")).unwrap();
    place.put(&note("a", "2")).unwrap();
    let mut messages = Vec::new();
    manager.set_nonblocking(true).unwrap();
    let mut buffer = [0; 200];
    while let Ok(n) = manager.recv(&mut buffer) {
        messages.push(String::from_utf8(buffer[..n].to_vec()).unwrap());
    }
    let expected = [
        "FDSTORE=1\nFDNAME=towpath-1\nFDPOLL=0\n",
        "FDSTORE=1\nFDNAME=towpath-2\nFDPOLL=0\n",
        "FDSTOREREMOVE=1\nFDNAME=towpath-1\n",
    ];
    assert_eq!(messages, expected);
    drop(manager);
    assert!(place.put(&note("a", "3")).is_err());
    assert_eq!(place.names, ["towpath-2"], "still the one kept before");
    assert_eq!(keeper.failures(), 1);
}

#[test]
fn nobody_keeps_nothing_and_that_is_no_error() {
    let keeper = Keeper::nobody();
    let mut place = keeper.place();
    place.put(&note("a", "1")).unwrap();
    assert!(!keeper.keeps() && place.names.is_empty());
}
