//! Warm-pool arithmetic (§4.5). A available, T total, C what an interface can give.

/// Addresses of a /28 (§4.1).
pub const PREFIX: u32 = 16;

/// The environment (§1.1), with the shipped manifest's values by default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets {
    /// WARM_ENI_TARGET.
    pub warm_enis: u32,
    /// WARM_IP_TARGET; 0 is unset.
    pub warm_ips: u32,
    /// MINIMUM_IP_TARGET; 0 is unset.
    pub minimum_ips: u32,
    /// ENABLE_PREFIX_DELEGATION.
    pub prefixes: bool,
    /// WARM_PREFIX_TARGET.
    pub warm_prefixes: u32,
}

impl Default for Targets {
    fn default() -> Self {
        Self {
            warm_enis: 1,
            warm_ips: 0,
            minimum_ips: 0,
            prefixes: false,
            warm_prefixes: 1,
        }
    }
}

/// What the store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Addresses (T); those that rest after a pod are available (§4.2).
    pub total: u32,
    /// Addresses that pods have.
    pub assigned: u32,
    /// Prefixes.
    pub prefixes: u32,
    /// Prefixes of which no pod has an address.
    pub free_prefixes: u32,
}

impl Stats {
    /// Addresses that no pod has (A), those that rest included (§4.2).
    pub fn available(&self) -> u32 {
        self.total - self.assigned
    }
}

impl Targets {
    /// Whether addresses are counted, not interfaces.
    pub fn by_addresses(&self) -> bool {
        self.warm_ips > 0 || self.minimum_ips > 0
    }

    /// Addresses that are missing: max(W − A, 0, M − T).
    pub fn short(&self, stats: &Stats) -> u32 {
        let warm = self.warm_ips.saturating_sub(stats.available());
        warm.max(self.minimum_ips.saturating_sub(stats.total))
    }

    /// Addresses too many: max(0, min(A − W, T − M)).
    pub fn over(&self, stats: &Stats) -> u32 {
        let warm = stats.available().saturating_sub(self.warm_ips);
        warm.min(stats.total.saturating_sub(self.minimum_ips))
    }

    /// Prefixes to ask for at once, at least one.
    pub fn short_prefixes(&self, stats: &Stats) -> u32 {
        let addresses = match self.by_addresses() {
            true => self.short(stats),
            false => (self.warm_prefixes * PREFIX).saturating_sub(stats.available()),
        };
        addresses.div_ceil(PREFIX).max(1)
    }

    /// Whole prefixes too many.
    pub fn over_prefixes(&self, stats: &Stats) -> u32 {
        if !self.by_addresses() {
            return stats.free_prefixes.saturating_sub(self.warm_prefixes);
        }
        let warm = (stats.assigned + self.warm_ips).div_ceil(PREFIX);
        let minimum = self.minimum_ips.div_ceil(PREFIX);
        let surplus = stats.prefixes.saturating_sub(warm.max(minimum));
        stats.free_prefixes.min(surplus)
    }

    /// Whether the pool is too low; never with as many addresses as pods are allowed.
    pub fn is_low(&self, stats: &Stats, per_eni: u32, max_pods: u32) -> bool {
        if stats.total >= max_pods {
            return false;
        }
        if self.by_addresses() {
            return self.short(stats) > 0;
        }
        let (target, each) = match self.prefixes {
            true => (self.warm_prefixes, PREFIX),
            false => (self.warm_enis, per_eni),
        };
        stats.available() < target * each || (target == 0 && stats.available() == 0)
    }

    /// Whether addresses or prefixes are to be given back.
    pub fn is_high(&self, stats: &Stats) -> bool {
        match (self.prefixes, self.by_addresses()) {
            (true, _) => self.over_prefixes(stats) > 0,
            (false, true) => self.over(stats) > 0,
            (false, false) => false,
        }
    }

    /// Whether an interface may be given back. `per_eni` counts addresses, prefixes' sixteen included.
    pub fn tries_to_free(&self, stats: &Stats, per_eni: u32, free_eni: bool) -> bool {
        let target = match self.prefixes {
            true => self.warm_prefixes,
            false => self.warm_enis,
        };
        self.by_addresses()
            || stats.available() >= (target + 1) * per_eni
            || (self.prefixes && free_eni)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(total: u32, assigned: u32) -> Stats {
        Stats {
            total,
            assigned,
            ..Stats::default()
        }
    }

    #[test]
    fn section_4_5_short_and_over_by_address_targets() {
        for (warm, minimum, total, assigned, short, over, why) in [
            (5, 0, 10, 7, 2, 0, "two of five warm ones are missing"),
            (5, 0, 10, 3, 0, 2, "two more than five are free"),
            (
                2,
                12,
                10,
                1,
                2,
                0,
                "the floor is missed, the warm target is not",
            ),
            (
                2,
                12,
                14,
                1,
                0,
                2,
                "above the floor by two, above the warm target by more",
            ),
            (
                2,
                12,
                12,
                1,
                0,
                0,
                "the floor keeps what the warm target would give back",
            ),
            (0, 3, 1, 1, 2, 0, "a floor alone"),
        ] {
            let targets = Targets {
                warm_ips: warm,
                minimum_ips: minimum,
                ..Targets::default()
            };
            let stats = stats(total, assigned);
            assert_eq!(targets.short(&stats), short, "short: {why}");
            assert_eq!(targets.over(&stats), over, "over: {why}");
        }
    }

    #[test]
    fn section_4_5_low_by_interface_target() {
        let one = Targets::default();
        let none = Targets {
            warm_enis: 0,
            ..Targets::default()
        };
        for (targets, total, assigned, low, why) in [
            (&one, 14, 0, false, "an interface's worth is free"),
            (&one, 14, 1, true, "less than an interface's worth is free"),
            (&none, 14, 13, false, "target 0: one is free"),
            (&none, 14, 14, true, "target 0 and nothing free"),
            (&one, 58, 58, false, "as many addresses as pods are allowed"),
        ] {
            assert_eq!(
                targets.is_low(&stats(total, assigned), 14, 58),
                low,
                "{why}"
            );
        }
    }

    #[test]
    fn section_4_5_an_interface_may_go_when_the_target_and_one_more_are_free() {
        let targets = Targets::default();
        assert!(!targets.tries_to_free(&stats(42, 15), 14, true));
        assert!(targets.tries_to_free(&stats(42, 14), 14, false));
        let by_addresses = Targets {
            warm_ips: 5,
            ..Targets::default()
        };
        assert!(
            by_addresses.tries_to_free(&stats(14, 14), 14, false),
            "with address targets it always looks"
        );
    }

    #[test]
    fn section_4_5_prefixes_are_counted_whole() {
        let warm_one = Targets {
            prefixes: true,
            ..Targets::default()
        };
        let with = |prefixes, free_prefixes, assigned| Stats {
            total: prefixes * PREFIX,
            assigned,
            prefixes,
            free_prefixes,
        };
        assert!(
            warm_one.is_low(&with(1, 0, 1), 224, 110),
            "fifteen free are less than a prefix"
        );
        assert!(!warm_one.is_low(&with(2, 1, 16), 224, 110));
        assert!(
            warm_one.is_high(&with(3, 2, 16)),
            "two free prefixes are one too many"
        );
        let by_addresses = Targets {
            prefixes: true,
            warm_ips: 5,
            minimum_ips: 20,
            ..Targets::default()
        };
        assert_eq!(by_addresses.short_prefixes(&with(1, 0, 14)), 1);
        assert_eq!(
            by_addresses.over_prefixes(&with(3, 2, 3)),
            1,
            "twenty need two prefixes"
        );
        assert_eq!(
            by_addresses.over_prefixes(&with(3, 0, 3)),
            0,
            "none of them is wholly free"
        );
    }
}
