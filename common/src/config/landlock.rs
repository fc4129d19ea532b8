//! What files a daemon may reach, as configured; [`crate::sandbox::landlock`] sees to it. Like
//! `[daemon]`, it takes effect at a start only.

use std::path::PathBuf;

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};

/// The table `[landlock]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Landlock {
    /// Directories that the daemon may reach beside those of what it serves when it starts;
    /// nothing: it is not limited.
    #[serde(deserialize_with = "absolute")]
    pub paths: Vec<PathBuf>,
}

fn absolute<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
    let all = Vec::<PathBuf>::deserialize(from)?;
    match all.iter().find(|path| !path.is_absolute()) {
        Some(path) => Err(D::Error::custom(format!(
            "{} is relative; write it from / on",
            path.display()
        ))),
        None => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute() {
        let landlock = |text: &str| toml::from_str::<Landlock>(text);
        assert_eq!(
            landlock("paths = [\"/a\"]").unwrap().paths,
            ["/a"].map(PathBuf::from)
        );
        let error = landlock("paths = [\"/a\", \"b\"]").unwrap_err().to_string();
        assert!(
            error.contains("b is relative; write it from / on"),
            "{error}"
        );
    }
}
