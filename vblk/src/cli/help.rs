//! The longer texts of `--help`.

pub(super) const BACKUP: &str = "\
Examples:
  vblk backup web --to /srv/backup/web-monday.img
  vblk backup web --to /srv/backup/web-tuesday.img --incremental --rate 50M
  vblk backup web --to nbd://nas/web --manifest /srv/backup/web.manifest
  vblk backup web --to /srv/backup/web-tuesday.img --incremental --resume
  vblk backup web
  vblk backup web --cancel

A backup is the disk at one moment: that at which it begins, or at which it is resumed. Beside its
file is a manifest, FILE.manifest, with the hash of each block. An incremental one holds what
changed since the last backup that succeeded, and needs that one; where what changed is not known
for sure, it is a full one, and says so. `bitmap` in the disk's configuration makes that knowledge
outlive the daemon. The backup goes on if this command is interrupted.";

pub(super) const RESTORE: &str = "\
Examples:
  vblk restore /srv/backup/web-tuesday.img /var/lib/vm/web-again.img
  vblk restore /srv/backup/web-tuesday.img /dev/vg/web --overwrite

A disk that a daemon or QEMU has open is refused: stop that first.";

pub(super) const CONFIG_DIFF: &str = "\
+ is new, - goes, ~ changes, each key with its old and its new value. A change that `ends its
session` takes a disk away from a machine that uses it, for as long as the machine takes to connect
again; what is `set up anew` has no machine now; all else is applied as it runs.

Exit codes: 0 no difference, 1 differences, 2 the file is refused or the daemon gives no answer.";
