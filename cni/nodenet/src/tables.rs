//! What others change in the tables of nft and of iptables-nft, as the kernel tells it (net/netfilter/nf_tables_api.c).

use crate::netfilter::{NFTABLES, attributes, kind};

const DEL_TABLE: u16 = kind(NFTABLES, 2);
const NEW_CHAIN: u16 = kind(NFTABLES, 3);
const DEL_CHAIN: u16 = kind(NFTABLES, 5);
const NEW_RULE: u16 = kind(NFTABLES, 6);
const DEL_RULE: u16 = kind(NFTABLES, 8);

/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`.
const TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_RULE_CHAIN: u16 = 2;

/// A table that has gone, or a chain of which something has changed: itself or one of its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableChange {
    /// The table's name, of whatever family.
    pub table: String,
    /// The chain's; `None` where the table has gone.
    pub chain: Option<String>,
}

/// `None` for what is no change of a chain: sets, new tables, the end of a transaction.
pub(crate) fn read(kind: u16, body: &[u8]) -> Option<TableChange> {
    let text = |wanted: u16| {
        let found = attributes(body).find(|attribute| attribute.kind() == wanted)?;
        let text = String::from_utf8_lossy(found.value());
        Some(text.trim_end_matches('\0').to_owned())
    };
    let chain = match kind {
        DEL_TABLE => None,
        NEW_CHAIN | DEL_CHAIN => Some(text(NFTA_CHAIN_NAME)?),
        NEW_RULE | DEL_RULE => Some(text(NFTA_RULE_CHAIN)?),
        _ => return None,
    };
    Some(TableChange {
        table: text(TABLE)?,
        chain,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::{IPV4, begin, put};

    fn body(attributes: &[(u16, &str)]) -> Vec<u8> {
        let mut body = begin(IPV4);
        for (kind, text) in attributes {
            put(&mut body, *kind, format!("{text}\0").as_bytes());
        }
        body
    }

    fn change(table: &str, chain: Option<&str>) -> Option<TableChange> {
        Some(TableChange {
            table: table.to_owned(),
            chain: chain.map(str::to_owned),
        })
    }

    #[test]
    fn rules_chains_and_tables_are_told_by_their_names() {
        let rule = body(&[(1, "nat"), (2, "AWS-SNAT-CHAIN-0")]);
        let told = change("nat", Some("AWS-SNAT-CHAIN-0"));
        assert_eq!(read(DEL_RULE, &rule), told);
        assert_eq!(read(NEW_RULE, &rule), told);
        let chain = body(&[(1, "filter"), (3, "FORWARD")]);
        assert_eq!(read(NEW_CHAIN, &chain), change("filter", Some("FORWARD")));
        assert_eq!(read(DEL_CHAIN, &chain), change("filter", Some("FORWARD")));
        assert_eq!(read(DEL_TABLE, &body(&[(1, "nat")])), change("nat", None));
    }

    #[test]
    fn what_is_something_else_or_cut_off_is_no_change() {
        let rule = body(&[(1, "nat"), (2, "POSTROUTING")]);
        // A new table, an element of a set, the end of a transaction, rtnetlink's.
        for other in [
            kind(NFTABLES, 0),
            kind(NFTABLES, 12),
            kind(NFTABLES, 15),
            24,
        ] {
            assert_eq!(read(other, &rule), None, "{other}");
        }
        for length in [0, 3, 4, 11, 12, 20] {
            assert_eq!(read(DEL_RULE, &rule[..length]), None, "{length}");
        }
    }
}
