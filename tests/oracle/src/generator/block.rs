//! Random blocks of addresses, around those that pods have.

use serde_json::{Value, json};

use super::object;
use crate::random::Random;

const V4: [&str; 6] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.1.1",
    "10.1.0.2",
    "198.51.100.10",
];
const V6: [&str; 5] = [
    "fd00::1",
    "fd00::2",
    "fd00::1:1",
    "fd00:1::2",
    "2001:DB8::10",
];

const V4_BITS: [u32; 13] = [0, 1, 7, 8, 15, 16, 23, 24, 28, 29, 30, 31, 32];
const V6_BITS: [u32; 12] = [0, 1, 3, 32, 48, 64, 65, 96, 112, 126, 127, 128];

pub(super) fn block(random: &mut Random, odd: usize) -> Value {
    let v6 = random.percent(35);
    let (addresses, bits): (&[&str], &[u32]) = if v6 { (&V6, &V6_BITS) } else { (&V4, &V4_BITS) };
    let (address, length) = (random.pick(addresses), random.pick(bits));
    // Host bits stay where they are: the API takes them.
    let mut cidr = format!("{address}/{length}");
    if !v6 && random.percent(5) {
        cidr = format!("::ffff:{address}/{}", 96 + length);
    }
    let longer: Vec<u32> = bits.iter().copied().filter(|bits| *bits > length).collect();
    let mut except = Vec::new();
    if !longer.is_empty() && random.percent(50) {
        // Nested, overlapping and equal ones come by themselves.
        for _ in 0..random.between(1, 3) {
            let inside = inside(random, address, addresses, length);
            except.push(format!("{inside}/{}", random.pick(&longer)));
        }
    }
    if random.percent(odd) {
        match random.below(6) {
            0 => cidr = "10.0.0/29".to_owned(),
            1 => cidr = "10.0.0.1".to_owned(),
            2 => cidr = "10.0.0.0/33".to_owned(),
            3 => except.push(cidr.clone()),
            4 => except.push("172.16.0.0/12".to_owned()),
            _ => except.push("fd00::/129".to_owned()),
        }
    }
    object([
        ("cidr", Some(json!(cidr))),
        ("except", (!except.is_empty()).then_some(json!(except))),
    ])
}

/// An address of the pool that shares its first bits with another; that one itself if none does.
fn inside(random: &mut Random, of: &str, pool: &[&'static str], length: u32) -> String {
    let bits = |text: &str| match text.parse() {
        Ok(std::net::IpAddr::V4(address)) => u128::from(u32::from(address)) << 96,
        Ok(std::net::IpAddr::V6(address)) => u128::from(address),
        Err(_) => 0,
    };
    let fits = |text: &&str| (bits(text) ^ bits(of)).leading_zeros() >= length;
    let pool: Vec<&str> = pool.iter().copied().filter(fits).collect();
    random.pick(&pool).to_owned()
}
