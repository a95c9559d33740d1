//! Codec: frames decoded from, and encoded into, one buffer as it comes from or goes to one system call; masking alone.
//!
//! Sizes are of the payload. Time per element is time per frame; masking is per byte.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rtc_benches::{CpuClock, criterion_by_cpu};
use websocket::{Decoded, Decoder, Opcode, Role, apply_mask, encode_frame, encode_masked_frame};

/// Payload bytes, and how many such frames one buffer holds.
const BATCHES: [(usize, u64); 3] = [(16, 256), (200, 64), (65_536, 1)];
const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Turns a space into `!`, `"`, `#`, `$` and back: decoding in place leaves text that the next iteration decodes again.
const KEY: [u8; 4] = [1, 2, 3, 4];

fn decode(c: &mut Criterion<CpuClock>) {
    let mut group = c.benchmark_group("decode");
    for (opcode, name) in [(Opcode::Text, "text"), (Opcode::Binary, "binary")] {
        for (payload_bytes, frames) in BATCHES {
            let payload = vec![b' '; payload_bytes];
            let mut input = Vec::new();
            for _ in 0..frames {
                encode_masked_frame(&mut input, opcode, &payload, KEY);
            }
            let mut decoder = Decoder::new(Role::Server, MESSAGE_BYTES_MAX);
            group.throughput(Throughput::Elements(frames));
            group.bench_function(BenchmarkId::new(name, payload_bytes), |b| {
                b.iter(|| {
                    let mut rest = &mut input[..];
                    while !rest.is_empty() {
                        let Decoded { consumed, event } = decoder.decode(rest).expect("valid frames");
                        black_box(event);
                        rest = &mut rest[consumed..];
                    }
                });
            });
        }
    }
    group.finish();
}

fn encode(c: &mut Criterion<CpuClock>) {
    let mut group = c.benchmark_group("encode");
    for (payload_bytes, frames) in BATCHES {
        let payload = vec![b' '; payload_bytes];
        let mut out = Vec::new();
        group.throughput(Throughput::Elements(frames));
        group.bench_function(BenchmarkId::new("server", payload_bytes), |b| {
            b.iter(|| {
                out.clear();
                for _ in 0..frames {
                    encode_frame(&mut out, Opcode::Text, black_box(&payload));
                }
                black_box(&out);
            });
        });
        group.bench_function(BenchmarkId::new("client", payload_bytes), |b| {
            b.iter(|| {
                out.clear();
                for _ in 0..frames {
                    encode_masked_frame(&mut out, Opcode::Text, black_box(&payload), black_box(KEY));
                }
                black_box(&out);
            });
        });
    }
    group.finish();
}

fn mask(c: &mut Criterion<CpuClock>) {
    let mut group = c.benchmark_group("mask");
    for (payload_bytes, _) in BATCHES {
        let mut payload = vec![b' '; payload_bytes];
        group.throughput(Throughput::Bytes(payload_bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(payload_bytes), |b| {
            b.iter(|| apply_mask(black_box(&mut payload), black_box(KEY)));
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = criterion_by_cpu(); targets = decode, encode, mask }
criterion_main!(benches);
