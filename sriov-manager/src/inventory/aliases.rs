//! Which modules of the running kernel would drive a device: `modules.alias` against its `modalias`,
//! as `modprobe` does it. Asked only about PFs that no driver has.

use std::collections::BTreeSet;
use std::path::Path;

use super::guards::glob;
use crate::address::PciAddr;
use crate::kernel::{Kernel, text};

/// Modules that a sentence names.
const NAMED: usize = 4;

/// Modules for the device at `address`, by name.
pub(super) fn modules_for(kernel: &dyn Kernel, address: PciAddr) -> Vec<String> {
    let Some(alias) = text(kernel, &address.file("modalias")) else {
        return Vec::new();
    };
    let version = text(kernel, Path::new("/proc/sys/kernel/osrelease")).unwrap_or_default();
    let table = Path::new("/lib/modules")
        .join(version)
        .join("modules.alias");
    let table = text(kernel, &table).unwrap_or_default();
    let found = table.lines().filter_map(|line| {
        let (pattern, module) = line.strip_prefix("alias ")?.rsplit_once(' ')?;
        // Most lines are about other buses, and a pattern costs more than a look.
        let ours = pattern.starts_with("pci:") && glob(pattern.as_bytes(), alias.as_bytes());
        ours.then(|| module.to_owned())
    });
    let modules: BTreeSet<String> = found.collect();
    modules.into_iter().take(NAMED).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Card, Model};

    #[test]
    fn modules_are_found_as_modprobe_does() {
        let model = Model::new([Card::new(1)]);
        let pf = PciAddr::new(0, 1, 0, 0);
        assert_eq!(modules_for(&model, pf), Vec::<String>::new());
        {
            let mut state = model.state();
            let alias = "pci:v00008086d000010C9sv00008086sd0000A03Cbc02sc00i00";
            state
                .files
                .file(&format!("{}/modalias", pf.dir().display()), alias);
            state.files.file("/proc/sys/kernel/osrelease", "6.12.0\n");
            state.files.file(
                "/lib/modules/6.12.0/modules.alias",
                "alias usb:v1* a\nalias pci:v00008086d000010C9sv*sd*bc*sc*i* igb\n\
                 alias pci:v00008086d00001533sv*sd*bc*sc*i* igc\n",
            );
        }
        assert_eq!(modules_for(&model, pf), ["igb"]);
    }
}
