//! Which host routes lead through which interface, kept by what the kernel says of links and routes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::message::{Attributes, Received, text, u32_ne};

/// `RTM_NEWLINK` and its neighbours.
const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;

/// `NLM_F_REPLACE`, in a notification: the route it stands in for is gone without another word.
const REPLACES: u16 = 0x100;

/// `struct ifinfomsg` and `struct rtmsg`.
pub(super) const LINK_HEADER: usize = 16;
pub(super) const ROUTE_HEADER: usize = 12;

/// `IFLA_IFNAME`.
const LINK_NAME: u16 = 3;
/// `IFF_UP`.
const UP: u32 = 1;

/// `RTA_DST`, `RTA_OIF`, `RTA_PRIORITY`, `RTA_TABLE`.
const DESTINATION: u16 = 1;
const INTERFACE: u16 = 4;
const METRIC: u16 = 6;
const TABLE: u16 = 15;
/// `RTN_UNICAST`.
const UNICAST: u8 = 1;
/// `RTM_F_CLONED`: a cached copy, not a route.
const CLONED: u32 = 0x200;

/// A host route; the order is the kernel's idea of which routes stand in for each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Route {
    address: IpAddr,
    table: u32,
    metric: u32,
    service: u8,
    interface: u32,
}

/// Something that the kernel says about what we keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Link { index: u32, name: String, up: bool },
    LinkGone { index: u32 },
    Route { route: Route, replaces: bool },
    RouteGone { route: Route },
}

/// What a message says; `None` when it is about something else or makes no sense.
pub(super) fn parse(message: &Received<'_>) -> Option<Event> {
    match message.kind {
        NEW_LINK | DELETE_LINK => parse_link(message),
        NEW_ROUTE => Some(Event::Route {
            route: parse_route(message.body)?,
            replaces: message.flags & REPLACES != 0,
        }),
        DELETE_ROUTE => Some(Event::RouteGone {
            route: parse_route(message.body)?,
        }),
        _ => None,
    }
}

fn parse_link(message: &Received<'_>) -> Option<Event> {
    let body = message.body;
    // Other families are about a bridge's ports: their DELLINK is not the link's end.
    if *body.first()? != 0 {
        return None;
    }
    let index = u32_ne(body, 4)?;
    if message.kind == DELETE_LINK {
        return Some(Event::LinkGone { index });
    }
    let attributes = Attributes(body.get(LINK_HEADER..)?);
    Some(Event::Link {
        index,
        name: text(attributes.find(LINK_NAME)?)?.to_owned(),
        up: u32_ne(body, 8)? & UP != 0,
    })
}

fn parse_route(body: &[u8]) -> Option<Route> {
    let (length, service, short_table, kind) =
        (*body.get(1)?, *body.get(3)?, *body.get(4)?, *body.get(7)?);
    let attributes = Attributes(body.get(ROUTE_HEADER..)?);
    let number = |kind| attributes.find(kind).and_then(|value| u32_ne(value, 0));
    let destination = attributes.find(DESTINATION)?;
    let address: IpAddr = match length {
        32 => <[u8; 4]>::try_from(destination).ok()?.into(),
        128 => <[u8; 16]>::try_from(destination).ok()?.into(),
        _ => return None,
    };
    let whole = kind == UNICAST && u32_ne(body, 8)? & CLONED == 0;
    whole.then_some(Route {
        address,
        table: number(TABLE).unwrap_or(short_table.into()),
        metric: number(METRIC).unwrap_or(0),
        service,
        interface: number(INTERFACE)?,
    })
}

/// Links by index, and host routes.
#[derive(Debug, Default)]
pub(super) struct State {
    links: BTreeMap<u32, String>,
    routes: BTreeSet<Route>,
}

impl State {
    pub(super) fn apply(&mut self, event: Event) {
        match event {
            Event::Link { index, name, up } => {
                self.links.insert(index, name);
                // The kernel takes routes away with the link and, for IPv4, says nothing.
                if !up {
                    self.routes.retain(|route| route.interface != index);
                }
            }
            Event::LinkGone { index } => {
                self.links.remove(&index);
                self.routes.retain(|route| route.interface != index);
            }
            Event::Route { route, replaces } => {
                if replaces {
                    let key = |it: &Route| (it.address, it.table, it.metric, it.service);
                    self.routes.retain(|other| key(other) != key(&route));
                }
                self.routes.insert(route);
            }
            Event::RouteGone { route } => {
                self.routes.remove(&route);
            }
        }
    }

    /// The addresses behind each interface whose name begins with one of the prefixes and that has
    /// any.
    pub(super) fn addresses(&self, prefixes: &[String]) -> BTreeMap<String, BTreeSet<IpAddr>> {
        let mut found: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
        for route in &self.routes {
            if let Some(name) = self.links.get(&route.interface)
                && prefixes.iter().any(|prefix| name.starts_with(prefix))
            {
                found.entry(name.clone()).or_default().insert(route.address);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Event, Route, State, parse};
    use crate::message::{HEADER, Message, messages};

    fn route(address: &str, table: u32, interface: u32) -> Route {
        Route {
            address: address.parse().unwrap(),
            table,
            metric: 0,
            service: 0,
            interface,
        }
    }

    fn new(route: Route) -> Event {
        Event::Route {
            route,
            replaces: false,
        }
    }

    fn link(index: u32, name: &str) -> Event {
        Event::Link {
            index,
            name: name.to_owned(),
            up: true,
        }
    }

    fn after(events: impl IntoIterator<Item = Event>) -> String {
        let mut state = State::default();
        for event in events {
            state.apply(event);
        }
        format!("{:?}", state.addresses(&["eni".to_owned()]))
    }

    #[test]
    fn an_address_in_two_tables_stays_until_both_routes_are_gone() {
        let both = [
            link(5, "enia"),
            new(route("10.0.0.1", 254, 5)),
            new(route("10.0.0.1", 20, 5)),
        ];
        let gone = |table| Event::RouteGone {
            route: route("10.0.0.1", table, 5),
        };
        let one_left = both.clone().into_iter().chain([gone(254)]);
        assert_eq!(after(one_left), r#"{"enia": {10.0.0.1}}"#);
        let none_left = both.into_iter().chain([gone(254), gone(20)]);
        assert_eq!(after(none_left), "{}");
    }

    #[test]
    fn a_replaced_route_leaves_the_interface_it_led_through() {
        let replaced = Event::Route {
            route: route("10.0.0.1", 254, 6),
            replaces: true,
        };
        let events = [
            link(5, "enia"),
            link(6, "enib"),
            new(route("10.0.0.1", 254, 5)),
            replaced,
        ];
        assert_eq!(after(events), r#"{"enib": {10.0.0.1}}"#);
    }

    #[test]
    fn a_link_that_goes_down_takes_its_routes_along_and_a_renamed_one_keeps_them() {
        let given = [link(5, "enia"), new(route("10.0.0.1", 254, 5))];
        let renamed = given.clone().into_iter().chain([link(5, "enib")]);
        assert_eq!(after(renamed), r#"{"enib": {10.0.0.1}}"#);
        let down = Event::Link {
            index: 5,
            name: "enia".to_owned(),
            up: false,
        };
        assert_eq!(after(given.into_iter().chain([down])), "{}");
    }

    #[test]
    fn a_port_that_leaves_a_bridge_is_not_a_link_that_is_gone() {
        // DELLINK of family AF_BRIDGE.
        let bytes = Message::plain(17, 0, &[7, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let bytes = bytes.finish(0);
        assert_eq!(parse(&messages(&bytes).next().unwrap()), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reading_panic(
            kind in 16_u16..27, body in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = Message::plain(kind, 0, &body).finish(0);
            prop_assert!(bytes.len() >= HEADER);
            for message in messages(&bytes) {
                let _ = parse(&message);
            }
        }
    }
}
