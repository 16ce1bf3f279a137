//! What the checkpoint adds to an ADD on a node with 735 pods: asking the pool, the text, the file. Beside it the
//! least that any write costs: the same bytes into a new file, and that in the place of the old one.
//!
//! `cargo bench -p selvage-ipamd --bench checkpoint -- [--folder FOLDER] [--cold]`. The folder is best on a tmpfs, as
//! `/run` is. `--cold` lets caches forget everything in between, as they do between two pods.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use selvage_ipamd::checkpoint::{Checkpoint, Store};
use selvage_ipamd_core::fake;
use selvage_ipamd_core::ids::{PodKey, PodName, Timestamp};
use selvage_ipamd_core::plan::{Targets, plan};
use selvage_ipamd_core::pool::Pool;

const PODS: usize = 735;
const WRITES: usize = 1000;
/// More than any cache that one of these processors has to itself.
const CACHES: usize = 64 << 20;
const LINE: usize = 64;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let folder = words.iter().position(|word| word == "--folder");
    let folder = folder.map_or("/dev/shm".into(), |at| PathBuf::from(&words[at + 1]));
    let folder = tempfile::tempdir_in(folder).expect("a folder for files");
    let mut caches = match words.iter().any(|word| word == "--cold") {
        true => vec![1_u8; CACHES],
        false => Vec::new(),
    };
    let mut forget = || caches.iter_mut().step_by(LINE).for_each(|byte| *byte += 1);

    let (mut pool, mut now) = (full_pool(), start() + Duration::from_secs(3600));
    let path = folder.path().join("ipam.json");
    let store = Store::new(path.clone());
    let (mut writes, mut floors) = (Vec::new(), Vec::new());
    for turn in 0..WRITES {
        now = now + Duration::from_millis(10);
        let (key, name) = pod(turn * 7 % PODS);
        pool.cancel(&key);
        write(&store, &pool, now);
        pool.assign(&key, &name, now).expect("it had an address");
        forget();
        let begun = Instant::now();
        write(&store, &pool, now);
        writes.push(begun.elapsed());
        let text = std::fs::read(&path).expect("it was written");
        forget();
        let begun = Instant::now();
        floor(folder.path(), &text);
        floors.push(begun.elapsed());
    }
    println!("checkpoint {}", told(writes));
    println!("floor      {}", told(floors));
}

fn write(store: &Store, pool: &Pool, now: Timestamp) {
    let checkpoint = Checkpoint {
        entries: pool.entries(),
        cooling: pool.cooling(now),
    };
    store.write(&checkpoint).expect("there is room");
}

fn floor(folder: &Path, text: &[u8]) {
    let (temporary, path) = (folder.join("floor.tmp"), folder.join("floor"));
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .open(&temporary)
        .expect("a file");
    file.write_all(text).expect("there is room");
    file.sync_all().expect("a disk");
    std::fs::rename(&temporary, &path).expect("the same folder");
    let folder = File::open(folder).expect("a folder");
    folder.sync_all().expect("a disk");
}

fn start() -> Timestamp {
    Timestamp::from_unix(Duration::from_secs(1_700_000_000))
}

/// A pool of 15 interfaces, all of whose addresses pods have.
fn full_pool() -> Pool {
    let ec2 = fake::Ec2::with_limits(15, 50);
    let mut now = start();
    let mut pool = Pool::new(&ec2.instance(), fake::settings());
    pool.reconcile(&ec2.enis(), now);
    let targets = Targets {
        minimum_ips: Some(PODS as u32),
        ..Targets::default()
    };
    for turn in 0..PODS {
        let (key, name) = pod(turn);
        while pool.assign(&key, &name, now).is_err() {
            now = now + Duration::from_secs(1);
            for action in plan(&pool, &targets, &ec2.instance_limits(), 0, now) {
                pool.begin(&action, now);
                let outcome = ec2.carry_out(&action);
                pool.apply(outcome, now);
            }
        }
    }
    pool
}

/// Names as long as they are on a node; identifiers of containers come in no order.
fn pod(turn: usize) -> (PodKey, PodName) {
    let hash = (turn as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let key = PodKey {
        network_name: "aws-cni".into(),
        container_id: format!("{hash:016x}").repeat(4),
        if_name: "eth0".into(),
    };
    let name = PodName {
        namespace: "production".into(),
        name: format!("application-7d9c5b8f6-{:05x}", hash >> 44),
    };
    (key, name)
}

fn told(mut took: Vec<Duration>) -> String {
    took.sort_unstable();
    let mean = took.iter().sum::<Duration>() / u32::try_from(took.len()).expect("few");
    format!("p50 {:?}  mean {mean:?}", took[took.len() / 2])
}
