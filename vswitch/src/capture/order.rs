//! What to capture, as it is asked for: ports by name, checked when the capture begins.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::filter::{Direction, Filter, PORTS};
use super::{MAX_SNAPLEN, SNAPLEN};
use crate::mac::Mac;
use crate::table::PortNo;
use crate::vlan::Vid;

/// The body of `POST /v1/captures`. Frames that meet every condition are captured; without any,
/// all frames.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Order {
    /// At these ports, 16 at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// Only on this way. Without it both, if ports are named; else in, and out if dropped there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// In this VLAN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vid>,
    /// From or to this address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Only what is dropped.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub discards: bool,
    /// Bytes to keep of a frame; 2048 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snaplen: Option<u32>,
    /// End after so many frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// End after so many seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

/// What is wrong with an order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// There is no such port.
    #[error("there is no port {0}; `vswitch port show` shows the ports")]
    NoPort(String),
    /// Too many ports.
    #[error("a capture can name {PORTS} ports; name fewer, or none for all")]
    Ports,
    /// A frame would be cut to nothing, or could not be that long.
    #[error("{0} bytes of a frame cannot be captured; use 1 to {MAX_SNAPLEN}")]
    Snaplen(u32),
    /// A VLAN or an address was asked for twice.
    #[error("{0} is one condition too many: a frame has one VLAN, and one address can be named")]
    Twice(String),
}

impl Order {
    /// Adds a condition as a person writes it: `vlan:10`, a MAC address, or the name of a port
    /// (`port:NAME` if it looks like something else).
    ///
    /// # Errors
    /// [`OrderError::Twice`] if there is such a condition already.
    pub fn add(&mut self, target: &str) -> Result<(), OrderError> {
        let twice = || OrderError::Twice(target.to_owned());
        let vlan = target.strip_prefix("vlan:").map(str::parse);
        if let Some(Ok(vid)) = vlan {
            return match self.vlan.replace(vid) {
                Some(_) => Err(twice()),
                None => Ok(()),
            };
        }
        if let Ok(mac) = target.strip_prefix("mac:").unwrap_or(target).parse() {
            return match self.mac.replace(mac) {
                Some(_) => Err(twice()),
                None => Ok(()),
            };
        }
        let name = target.strip_prefix("port:").unwrap_or(target);
        self.ports.push(name.to_owned());
        Ok(())
    }

    /// Bytes to keep of a frame.
    #[must_use]
    pub fn snaplen(&self) -> u32 {
        self.snaplen.unwrap_or(SNAPLEN)
    }

    /// The filter for this order, with ports found by `port`.
    ///
    /// # Errors
    /// [`OrderError`].
    pub fn resolve(&self, port: impl Fn(&str) -> Option<PortNo>) -> Result<Filter, OrderError> {
        if !(1..=MAX_SNAPLEN).contains(&self.snaplen()) {
            return Err(OrderError::Snaplen(self.snaplen()));
        }
        let mut filter = Filter {
            direction: self.direction,
            vlan: self.vlan,
            mac: self.mac,
            discards: self.discards,
            ..Filter::default()
        };
        for name in &self.ports {
            let port = port(name).ok_or_else(|| OrderError::NoPort(name.clone()))?;
            filter.ports.try_push(port).map_err(|_| OrderError::Ports)?;
        }
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(targets: &[&str]) -> Result<Order, OrderError> {
        let mut order = Order::default();
        targets.iter().try_for_each(|target| order.add(target))?;
        Ok(order)
    }

    #[test]
    fn a_target_is_what_it_looks_like() {
        let order = order(&["p0", "vlan:10", "52:54:00:12:34:56", "port:vlan:11"]).unwrap();
        assert_eq!(order.ports, ["p0", "vlan:11"]);
        assert_eq!(order.vlan, Vid::new(10));
        assert_eq!(order.mac, Some("52:54:00:12:34:56".parse().unwrap()));
        let filter = order.resolve(|name| (name == "p0").then_some(PortNo(4)));
        let error = filter.unwrap_err();
        assert!(error.to_string().starts_with("there is no port vlan:11"));
    }

    #[test]
    fn a_frame_has_one_vlan() {
        let error = order(&["vlan:1", "vlan:2"]).unwrap_err();
        assert_eq!(error, OrderError::Twice("vlan:2".to_owned()));
        assert!(order(&["2:3", "vlan:4095"]).unwrap().vlan.is_none());
    }

    #[test]
    fn limits_are_checked() {
        let all = |_: &str| Some(PortNo(1));
        for bad in [0, MAX_SNAPLEN + 1] {
            let order = Order {
                snaplen: Some(bad),
                ..Order::default()
            };
            assert_eq!(order.resolve(all), Err(OrderError::Snaplen(bad)));
        }
        let many = Order {
            ports: vec!["p".to_owned(); PORTS + 1],
            ..Order::default()
        };
        assert_eq!(many.resolve(all), Err(OrderError::Ports));
    }

    #[test]
    fn an_empty_order_is_short_and_unknown_keys_are_refused() {
        assert_eq!(serde_json::to_string(&Order::default()).unwrap(), "{}");
        assert!(serde_json::from_str::<Order>(r#"{"prots": []}"#).is_err());
    }
}
