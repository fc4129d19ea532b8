//! Files: what a process may open, make, rename and remove from now on is beneath the directories
//! it names, and can only become less. Nobody can add a directory to a daemon that runs; it is
//! restarted for that, which virtual machines do not notice.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use landlock::{
    ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    path_beneath_rules,
};

use super::SandboxError;

/// What of Landlock is asked for (Linux 6.10: ioctl on devices as well); older kernels give what
/// they have.
const WANTED: ABI = ABI::V5;

/// Files that every process reads, of the C library and the kernel.
const SYSTEM: [&str; 8] = [
    "/etc",
    "/proc",
    "/sys",
    "/usr",
    "/lib",
    "/lib64",
    "/run/systemd/resolve",
    "/run/nscd",
];

/// What may be reached. Paths that do not exist are left out.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// Beneath these, everything.
    pub all: Vec<PathBuf>,
    /// Beneath these, reading.
    pub read: Vec<PathBuf>,
}

impl Reach {
    /// The same, each directory once; what is relative is so to one that is reached.
    #[must_use]
    pub fn tidied(mut self) -> Reach {
        self.all.retain(|path| !path.as_os_str().is_empty());
        self.all.sort();
        self.all.dedup();
        self
    }
}

/// The directory that `path` is in, where files beside it are made and removed.
#[must_use]
pub fn beside(path: &Path) -> Option<PathBuf> {
    path.parent().map(Path::to_owned)
}

/// The directories of a process that is limited, for messages.
static LIMITED: OnceLock<String> = OnceLock::new();

/// Limit this thread, and those it begins, to `reach` and what every process reads. A kernel
/// without Landlock is said in the log.
///
/// # Errors
/// [`SandboxError::Landlock`].
pub fn limit(reach: &Reach) -> Result<(), SandboxError> {
    let failed = |error: landlock::RulesetError| SandboxError::Landlock(error.to_string());
    let read = reach.read.iter().cloned();
    let read = read.chain(SYSTEM.iter().map(PathBuf::from));
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(WANTED))
        .and_then(Ruleset::create)
        .map_err(failed)?
        .add_rules(path_beneath_rules(read, AccessFs::from_read(WANTED)))
        .map_err(failed)?
        .add_rules(path_beneath_rules(&reach.all, AccessFs::from_all(WANTED)))
        .map_err(failed)?
        .add_rules(path_beneath_rules(
            ["/dev/null"],
            AccessFs::from_all(WANTED),
        ))
        .map_err(failed)?
        .restrict_self()
        .map_err(failed)?;
    let names: Vec<String> = reach.all.iter().map(|p| p.display().to_string()).collect();
    match status.ruleset {
        RulesetStatus::NotEnforced => {
            tracing::warn!(name: crate::logging::events::NOT_CONFINED,
                "this kernel has no Landlock: files are not limited");
            return Ok(());
        }
        RulesetStatus::PartiallyEnforced => {
            tracing::info!(paths = ?names, "files are limited, as far as this kernel can");
        }
        RulesetStatus::FullyEnforced => tracing::info!(paths = ?names, "files are limited"),
    }
    let _ = LIMITED.set(names.join(", "));
    Ok(())
}

/// What to add to a message about something that may have been refused for this reason.
#[must_use]
pub fn hint() -> Option<String> {
    LIMITED.get().map(|names| {
        format!(
            "this daemon reaches only what is beneath {names}; add a directory to `paths` in \
             [landlock] and restart it, which guests do not notice"
        )
    })
}

/// `error`, with what may be behind it if it is a refusal.
#[must_use]
pub fn hinted(error: Box<dyn Error + Send + Sync>) -> Box<dyn Error + Send + Sync> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&*error);
    let mut refused = false;
    while let Some(here) = cause {
        let io = here.downcast_ref::<io::Error>();
        refused |= io.is_some_and(|e| e.kind() == io::ErrorKind::PermissionDenied);
        let errno = here.downcast_ref::<rustix::io::Errno>();
        refused |= errno == Some(&rustix::io::Errno::ACCESS);
        cause = here.source();
    }
    match hint() {
        Some(hint) if refused => format!("{error}; {hint}").into(),
        _ => error,
    }
}
