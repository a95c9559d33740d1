//! How this node is doing, measured by one thread for all who tell it: heartbeats and the page of metrics never disagree.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::load::{Load, LoadMeter};

/// Between two measurements: as often as a heartbeat tells them.
const INTERVAL: Duration = Duration::from_secs(2);

/// The last measurement. Until the second, the processors count as idle.
#[derive(Debug, Default)]
pub struct Vitals {
    cpu: Figure,
    mem: Figure,
}

/// A fraction with one writer.
#[derive(Debug, Default)]
struct Figure(AtomicU64);

impl Figure {
    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    fn value(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

impl Vitals {
    /// Starts the thread that measures; it ends after the last holder has let go.
    ///
    /// # Errors
    /// When the thread cannot be had.
    pub fn start() -> io::Result<Arc<Self>> {
        let vitals = Arc::new(Self::default());
        let mut meter = LoadMeter::start(Instant::now());
        // No time has passed: of the two only memory can be told.
        vitals.mem.set(meter.read(Instant::now()).mem);
        let measured = Arc::downgrade(&vitals);
        std::thread::Builder::new().name("vitals".to_owned()).spawn(move || {
            loop {
                std::thread::sleep(INTERVAL);
                let Some(vitals) = measured.upgrade() else { return };
                vitals.set_load(meter.read(Instant::now()));
            }
        })?;
        Ok(vitals)
    }

    /// How busy the machine is.
    pub fn load(&self) -> Load {
        Load { cpu: self.cpu.value(), mem: self.mem.value() }
    }

    fn set_load(&self, load: Load) {
        self.cpu.set(load.cpu);
        self.mem.set(load.mem);
    }
}
