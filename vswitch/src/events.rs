//! Events of vswitch, as operators know them: see [`towpath_common::logging::events`].

use towpath_common::events;

events! {
    /// An uplink is down.
    UPLINK_FAILED "uplink_failed" "39d2417aa06847958924583d2770674b";
    /// An uplink that was down works again.
    UPLINK_BACK "uplink_back" "ddc48a7a86974344b68954d33bb4251c";
    /// A guard drops what a port sends.
    GUARD_DROPS "guard_drops" "08d0b58ebb8f4ea2aba0de8d33548f87";
    /// A change at run time is in force.
    CHANGED "changed" "ac2b8b3e78c748f39e4f897ffe76246b";
    /// Such a change could not be written into the configuration file.
    CHANGE_NOT_KEPT "change_not_kept" "7df43c51a4a14daf84d263f0c7d3fed8";
}
