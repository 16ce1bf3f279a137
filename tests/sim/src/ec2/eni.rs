//! An interface, with since when and until when what it holds is held: a reader may be behind.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use selvage_ipamd_core::ids::{AttachmentId, EniId, Timestamp};

use crate::machine::NodeId;

/// An interface as a call describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The interface.
    pub id: EniId,
    /// Number of its subnet.
    pub subnet: usize,
    /// Its own address.
    pub primary: Ipv4Addr,
    /// What pods can have of it: /32 and /28, in order.
    pub blocks: Vec<Ipv4Net>,
    /// Attachment and device index, if attached.
    pub attachment: Option<(AttachmentId, u16)>,
    /// Whether it ends with its instance.
    pub keep: bool,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Its description.
    pub description: String,
}

#[derive(Debug, Clone)]
pub(super) struct Attachment {
    pub(super) id: AttachmentId,
    pub(super) device_index: u16,
    pub(super) since: Timestamp,
    /// From here on the instance has it.
    pub(super) there: Timestamp,
    /// Detached from here on.
    pub(super) until: Option<Timestamp>,
}

#[derive(Debug, Clone)]
pub(super) struct Eni {
    pub(super) id: EniId,
    pub(super) node: NodeId,
    pub(super) subnet: usize,
    pub(super) primary: Ipv4Addr,
    /// Since when each is assigned, and until when it was.
    pub(super) blocks: BTreeMap<Ipv4Net, (Timestamp, Option<Timestamp>)>,
    pub(super) created: Timestamp,
    pub(super) deleted: Option<Timestamp>,
    pub(super) attachment: Option<Attachment>,
    pub(super) keep: bool,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) description: String,
}

impl Eni {
    pub(super) fn attached(&self, at: Timestamp) -> bool {
        self.attachment
            .as_ref()
            .is_some_and(|a| a.until.is_none_or(|until| at < until))
    }

    pub(super) fn held(&self) -> impl Iterator<Item = Ipv4Net> {
        self.blocks
            .iter()
            .filter(|(_, (_, until))| until.is_none())
            .map(|(net, _)| *net)
    }

    /// As it was at a moment.
    pub(super) fn view(&self, at: Timestamp, there: bool) -> Option<View> {
        if at < self.created || self.deleted.is_some_and(|deleted| deleted <= at) {
            return None;
        }
        let shown = |(since, until): &(Timestamp, Option<Timestamp>)| {
            *since <= at && until.is_none_or(|until| at < until)
        };
        let attachment = self.attachment.as_ref().filter(|a| {
            let from = if there { a.there } else { a.since };
            from <= at && a.until.is_none_or(|until| at < until)
        });
        Some(View {
            id: self.id.clone(),
            subnet: self.subnet,
            primary: self.primary,
            blocks: self
                .blocks
                .iter()
                .filter(|(_, span)| shown(span))
                .map(|(net, _)| *net)
                .collect(),
            attachment: attachment.map(|a| (a.id.clone(), a.device_index)),
            keep: self.keep,
            tags: self.tags.clone(),
            description: self.description.clone(),
        })
    }
}
