//! Stand-in.
use crate::batch::Item;
use crate::discard::Discard;
/// Guards.
#[derive(Debug, Default)]
pub struct Guards;
impl Guards {
    /// x
    pub fn admit(&self, _: &Item, _: u64) -> Result<(), Discard> {
        Ok(())
    }
    /// x
    pub fn mac_limit(&self) -> u32 {
        1 << 20
    }
    /// x
    pub fn storm_group(&self, _: bool, _: u64) -> Result<(), Discard> {
        Ok(())
    }
    /// x
    pub fn storm_unknown(&self, _: u64) -> Result<(), Discard> {
        Ok(())
    }
}
