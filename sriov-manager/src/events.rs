//! Events of sriov-manager, as operators know them: see [`towpath_common::logging::events`].

use towpath_common::events;

events! {
    /// A card is as configured.
    APPLIED "applied" "393584c5109645febb71ed6900a2f838";
    /// A card could not be made as configured.
    APPLY_FAILED "apply_failed" "d1898d2c2eeb4008979bdae21bbb9279";
    /// Somebody else changed a card.
    DRIFT "drift" "74c5ded4adda4989a25c6688a16762c0";
    /// A VF was leased.
    LEASED "leased" "036b65df30a74006b9f2c964765b244c";
    /// A lease has ended.
    LEASE_ENDED "lease_ended" "9a8e2e68da1c4500b67e1bf71308c5b3";
    /// The card of a lease is gone.
    CARD_GONE "card_gone" "d2354a2659144f648dccd902abc3f020";
}
