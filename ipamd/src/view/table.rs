//! The pool as a table, for people.

use std::fmt;

use super::{Block, Interface, View};

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = &self.numbers;
        writeln!(
            f,
            "node {}  instance {} ({})  ipamd {}\nstatus  {}",
            or_dash(&self.node),
            or_dash(&self.instance),
            or_dash(&self.instance_type),
            self.version,
            self.status
        )?;
        writeln!(
            f,
            "pool    {} of {} interfaces, {} addresses: {} of pods, {} free, {} resting; {} at most, {} pods at most \
             (mode {})",
            numbers.enis,
            numbers.eni_max,
            numbers.total,
            numbers.assigned,
            numbers.available,
            numbers.cooling,
            numbers.ip_max,
            numbers.max_pods,
            self.mode
        )?;
        if let Some(eni_config) = &self.eni_config {
            writeln!(f, "custom  {eni_config}")?;
        }
        if self.unschedulable {
            writeln!(f, "node is cordoned: interfaces neither come nor go")?;
        }
        writeln!(f)?;
        let mut rows = vec![
            [
                "ENI", "DEVICE", "STATE", "SUBNET", "BLOCK", "PODS", "FREE", "RESTING",
            ]
            .map(str::to_owned),
        ];
        for interface in &self.interfaces {
            rows.extend(interface_rows(interface));
        }
        write_rows(f, &rows)?;
        self.fmt_outlook(f)
    }
}

impl View {
    /// What comes next, and why.
    fn fmt_outlook(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        if self.waiting > 0 {
            writeln!(f, "waiting {} pods", self.waiting)?;
        }
        match self.plan.as_slice() {
            [] => writeln!(f, "next    nothing: the pool is as its targets want it")?,
            steps => {
                for (index, step) in steps.iter().enumerate() {
                    let head = if index == 0 { "next  " } else { "then  " };
                    writeln!(f, "{head}  {step}")?;
                }
            }
        }
        if let Some(why) = &self.why_empty {
            writeln!(f, "no address is free: {why}")?;
        }
        if let Some(words) = &self.last_failure {
            writeln!(f, "failed  {words}")?;
        }
        for subnet in &self.subnets {
            writeln!(f, "subnet  {} has {} free", subnet.id, subnet.available)?;
        }
        for calls in &self.calls {
            writeln!(
                f,
                "EC2     {} calls: {} at once, then {:.2} a second (of {:.2}), the next in {:.1} s; throttled {} times",
                calls.budget,
                calls.at_once,
                calls.per_second,
                calls.full_per_second,
                calls.next_in_seconds,
                calls.throttled
            )?;
        }
        Ok(())
    }
}

/// Single addresses in one row together, each prefix in a row of its own.
fn interface_rows(interface: &Interface) -> Vec<[String; 8]> {
    let (pods, free, resting) = interface.sums();
    let singles = interface.blocks.iter().filter(|b| !b.is_prefix()).count();
    let device = interface.device.map_or("-".to_owned(), |d| d.to_string());
    let mut state = interface.stage.clone();
    if !interface.serves {
        state.push_str(" (no new pods)");
    }
    let mut held = match singles {
        0 => "-".to_owned(),
        1 => "1 address".to_owned(),
        count => format!("{count} addresses"),
    };
    let missing = |block: &&Block| block.missing && !block.is_prefix();
    match interface.blocks.iter().filter(missing).count() {
        0 => {}
        count => held.push_str(&format!(" ({count} missing)")),
    }
    let mut rows = vec![[
        interface.id.clone(),
        device,
        state,
        interface.subnet.clone(),
        held,
        pods.to_string(),
        count(free),
        resting.to_string(),
    ]];
    for block in interface.blocks.iter().filter(|b| b.is_prefix()) {
        let mut name = block.block.to_string();
        if block.leaving {
            name.push_str(" (leaving)");
        }
        if block.missing {
            name.push_str(" (missing)");
        }
        let mut row = [const { String::new() }; 8];
        row[4] = name;
        row[5] = block.pods.len().to_string();
        row[6] = count(block.free);
        row[7] = block.cooling.to_string();
        rows.push(row);
    }
    rows
}

/// A `/80` has more than can be counted.
fn count(free: u32) -> String {
    match free {
        u32::MAX => "many".to_owned(),
        free => free.to_string(),
    }
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// Columns as wide as their widest word.
fn write_rows(f: &mut fmt::Formatter<'_>, rows: &[[String; 8]]) -> fmt::Result {
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
            line.push_str(&format!("{cell:width$}  "));
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::view::{Numbers, View, example};

    #[test]
    fn the_pool_is_a_table_and_what_comes_next_stands_below_it() {
        let expected = "\
node node-1  instance i-0abc (c5.large)  ipamd 0.1.0
status  ready
pool    2 of 3 interfaces, 20 addresses: 1 of pods, 18 free, 1 resting; 27 at most, 29 pods at most (mode addresses)

ENI    DEVICE  STATE     SUBNET    BLOCK                   PODS  FREE  RESTING
eni-0  0       ready     subnet-1  3 addresses             1     17    1
                                   10.0.1.16/28 (leaving)  0     16    0
eni-1  -       detached  subnet-2  1 address               0     1     0

next    attach eni-1 as device 1
failed  AttachNetworkInterface: Code: words of EC2
EC2     change calls: 9 at once, then 1.00 a second (of 2.00), the next in 0.0 s; throttled 1 times
";
        assert_eq!(example().to_string(), expected);
    }

    #[test]
    fn what_ec2_no_longer_shows_is_marked() {
        let mut view = example();
        for at in [0, 3] {
            view.interfaces[0].blocks[at].missing = true;
        }
        let text = view.to_string();
        assert!(text.contains("3 addresses (1 missing)"), "{text}");
        assert!(text.contains("10.0.1.16/28 (leaving) (missing)"), "{text}");
    }

    #[test]
    fn a_daemon_that_starts_has_a_table_too() {
        let view = View {
            status: "starting: read instance metadata".into(),
            numbers: Numbers::default(),
            ..View::default()
        };
        let text = view.to_string();
        assert!(
            text.contains("status  starting: read instance metadata"),
            "{text}"
        );
        assert!(text.contains("node -  instance - (-)"), "{text}");
    }

    #[test]
    fn a_view_is_read_back_as_it_was_written() {
        let view = example();
        let text = serde_json::to_string(&view).unwrap();
        assert_eq!(serde_json::from_str::<View>(&text).unwrap(), view);
        // A daemon of the next version says more, one of the last says less.
        let older: View = serde_json::from_str(r#"{"status": "ready", "new": 1}"#).unwrap();
        assert_eq!(older.status, "ready");
    }
}
