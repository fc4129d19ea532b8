//! Configuration files and arguments of all three daemons.

use towpath_common::config::{ConfigError, Document};

/// What is read: the first byte chooses, the rest is the text.
pub(crate) fn configs(input: &[u8]) {
    let Some((choice, text)) = input.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(text);
    let document = Document::new("x.toml", text.clone());
    let arguments = || vec![text.clone().into_owned()];
    match choice % 7 {
        0 => judge(vblk::config::Config::load_from(
            &Default::default(),
            Some(&document),
        )),
        1 => judge(vswitch::config::Config::load_from(
            &Default::default(),
            Some(&document),
        )),
        2 => judge(sriov_manager::spec::Spec::parse(&document)),
        3 => {
            let sources = vblk::config::Sources {
                disks: arguments(),
                ..Default::default()
            };
            judge(vblk::config::Config::load_from(&sources, None));
        }
        4 => {
            let sources = vswitch::config::Sources {
                ports: arguments(),
                ..Default::default()
            };
            judge(vswitch::config::Config::load_from(&sources, None));
        }
        5 => {
            let sources = vswitch::config::Sources {
                uplinks: arguments(),
                ..Default::default()
            };
            judge(vswitch::config::Config::load_from(&sources, None));
        }
        // The same type as the API reads it.
        _ => {
            let _ = serde_json::from_str::<vswitch::config::Port>(&text);
        }
    }
}

/// A mistake is told in one line that says something.
fn judge<T>(loaded: Result<T, ConfigError>) {
    if let Err(error) = loaded {
        let text = error.to_string();
        assert!(!text.trim().is_empty(), "an error without words");
        assert!(
            !text.contains(char::is_control),
            "more than a line: {text:?}"
        );
    }
}
