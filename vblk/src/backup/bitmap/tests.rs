//! Marks kept across restarts, and files that are not believed.

use super::*;

const SIZE: u64 = 100 * BLOCK;

fn subject() -> Subject {
    Subject {
        identity: "d".to_owned(),
        size: SIZE,
        stamp: Some("1".to_owned()),
    }
}

fn made(id: &str) -> Made {
    Made {
        id: id.to_owned(),
        manifest: format!("/b/{id}.manifest").into(),
    }
}

fn changed(bitmap: &Bitmap) -> Vec<u64> {
    let all = 0..SIZE / BLOCK;
    let set = |b: &u64| bitmap.changed(usize::try_from(b / 64).unwrap()) >> (b % 64) & 1 == 1;
    all.filter(set).collect()
}

/// A bitmap upon which an increment can be built, with blocks 3 and 70 changed since.
fn begun(path: &Path) -> Bitmap {
    let bitmap = Bitmap::open(path, &subject()).unwrap();
    assert!(bitmap.last().is_err());
    bitmap.mark(0, BLOCK);
    bitmap.begin(made("one")).unwrap();
    bitmap.mark(3 * BLOCK, 1);
    bitmap.succeed(made("one")).unwrap();
    bitmap.mark(70 * BLOCK + 5, BLOCK - 5);
    assert_eq!(changed(&bitmap), [3, 70]);
    bitmap
}

#[test]
fn what_changed_outlives_a_kill_and_a_clean_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bitmap");
    // Dropped without a word, as by SIGKILL.
    drop(begun(&path));
    let bitmap = Bitmap::open(&path, &subject()).unwrap();
    assert_eq!(
        (bitmap.last(), changed(&bitmap)),
        (Ok(made("one")), vec![3, 70])
    );
    bitmap.mark(5 * BLOCK, 1);
    bitmap.close(subject().stamp).unwrap();
    drop(bitmap);
    let bitmap = Bitmap::open(&path, &subject()).unwrap();
    assert_eq!(
        (bitmap.last(), changed(&bitmap)),
        (Ok(made("one")), vec![3, 5, 70])
    );
}

#[test]
fn a_backup_that_is_cut_off_forgets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bitmap");
    let bitmap = begun(&path);
    bitmap.begin(made("two")).unwrap();
    bitmap.mark(9 * BLOCK, 1);
    drop(bitmap);
    let bitmap = Bitmap::open(&path, &subject()).unwrap();
    assert_eq!(bitmap.cut_off(), Some(made("two")));
    assert_eq!(
        (bitmap.last(), changed(&bitmap)),
        (Ok(made("one")), vec![3, 9, 70])
    );
    assert!(bitmap.is_recent(9) && !bitmap.is_recent(3));
    bitmap.begin(made("three")).unwrap();
    bitmap.mark(1, 1);
    bitmap.succeed(made("three")).unwrap();
    assert_eq!(
        (bitmap.last(), changed(&bitmap)),
        (Ok(made("three")), vec![0])
    );
    assert_eq!(bitmap.cut_off(), None);
}

/// Open the bitmap after `damage`: why it is not believed.
fn doubt_after(damage: impl FnOnce(&Path, &mut Subject)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bitmap");
    drop(begun(&path));
    let mut subject = subject();
    damage(&path, &mut subject);
    let bitmap = Bitmap::open(&path, &subject).unwrap();
    assert!(changed(&bitmap).is_empty());
    let why = bitmap.last().unwrap_err();
    // And not the next time either, until there is a backup.
    drop(bitmap);
    let again = Bitmap::open(&path, &subject).unwrap();
    assert_eq!(again.last().unwrap_err(), why);
    again.begin(made("new")).unwrap();
    again.succeed(made("new")).unwrap();
    assert_eq!(again.last(), Ok(made("new")));
    why
}

/// Change the header of the bitmap `path`, as vblk itself would have written it.
fn edit(path: &Path, change: impl FnOnce(&mut Header)) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut header = read_header(&file, file.metadata().unwrap().len(), path);
    let header = header.as_mut().unwrap().as_mut().unwrap();
    change(header);
    let text = serde_json::to_string(header).unwrap();
    let mut page = format!("{}{text}\n", seal(&text)).into_bytes();
    page.resize(4096, 0);
    file.write_all_at(&page, 0).unwrap();
}

#[test]
fn bits_that_may_be_wrong_are_not_believed_and_it_says_why() {
    let crash = doubt_after(|path, _| edit(path, |h| h.boot = "another".to_owned()));
    assert!(crash.contains("machine crashed"), "{crash}");
    let other = doubt_after(|_, subject| subject.identity = "e".to_owned());
    assert!(other.contains("another disk"), "{other}");
    let behind = doubt_after(|path, subject| {
        let bitmap = Bitmap::open(path, subject).unwrap();
        bitmap.close(subject.stamp.clone()).unwrap();
        subject.stamp = Some("2".to_owned());
    });
    assert!(behind.contains("did not serve it"), "{behind}");
    let torn = doubt_after(|path, _| {
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(b"x", 100).unwrap();
    });
    assert!(
        torn.contains("no backup") || torn.contains("damaged"),
        "{torn}"
    );
    let cut = doubt_after(|path, _| {
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(5000)
            .unwrap();
    });
    assert!(cut.contains("damaged"), "{cut}");
}

#[test]
fn what_a_disk_grew_by_is_changed_and_beyond_the_room_nothing_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bitmap");
    let bitmap = begun(&path);
    bitmap.resized(SIZE, SIZE + 1);
    let words = (0..4).map(|i| bitmap.changed(i).count_ones()).sum::<u32>();
    assert_eq!(words, 3);
    bitmap.mark(FEWEST * BLOCK - 1, 2);
    assert!(bitmap.last().unwrap_err().contains("outgrown"));
    bitmap.close(subject().stamp).unwrap();
    drop(bitmap);
    let bitmap = Bitmap::open(&path, &subject()).unwrap();
    assert!(bitmap.last().unwrap_err().contains("outgrown"));
}

#[test]
fn a_file_of_something_else_or_somebody_else_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("letter");
    for len in [1, 10_000] {
        std::fs::write(&path, vec![b'x'; len]).unwrap();
        let error = Bitmap::open(&path, &subject()).unwrap_err();
        assert!(matches!(error, BackupError::NotABitmap(_)), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), vec![b'x'; len]);
    }
    let path = dir.path().join("bitmap");
    let _held = begun(&path);
    let error = Bitmap::open(&path, &subject()).unwrap_err();
    assert!(matches!(error, BackupError::BitmapInUse(_)), "{error}");
}
