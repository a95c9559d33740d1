//! Mailbox: messages posted and drained, wake-up included, beside a channel that wakes its reader for every message.
//!
//! Both ends on one thread: what is measured is the work per message, not how soon the kernel runs the other thread.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use crossbeam::channel;
use rtc_benches::{CpuClock, criterion_by_cpu};
use rtc_server::shard::mailbox::mailbox;
use rustix::event::{EventfdFlags, eventfd};

const CAPACITY: usize = 1024;
/// Messages posted before the reader wakes: a quiet shard, and a busy one.
const BATCHES: [u64; 2] = [1, 64];
/// As large as what shards hand each other.
type Message = [u64; 8];

fn post_and_drain(c: &mut Criterion<CpuClock>) {
    let mut group = c.benchmark_group("mailbox");
    for batch in BATCHES {
        group.throughput(Throughput::Elements(batch));
        let (sender, receiver) = mailbox::<Message>(CAPACITY).expect("a descriptor for the wake-up");
        group.bench_function(BenchmarkId::new("ours", batch), |b| {
            b.iter(|| {
                for _ in 0..batch {
                    sender.post(black_box([0; 8])).expect("the batch fits");
                }
                receiver.begin();
                while let Some(message) = receiver.next() {
                    black_box(message);
                }
            });
        });

        let (sender, receiver) = channel::bounded::<Message>(CAPACITY);
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("a descriptor for the wake-up");
        group.bench_function(BenchmarkId::new("channel", batch), |b| {
            b.iter(|| {
                for _ in 0..batch {
                    sender.try_send(black_box([0; 8])).expect("the batch fits");
                    rustix::io::write(&event, &1_u64.to_ne_bytes()).expect("far from the counter's limit");
                }
                rustix::io::read(&event, &mut [0; 8]).expect("it was written");
                while let Ok(message) = receiver.try_recv() {
                    black_box(message);
                }
            });
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = criterion_by_cpu(); targets = post_and_drain }
criterion_main!(benches);
