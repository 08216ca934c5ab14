//! What is broken just now: a reason for anything not to move.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Shared by whoever breaks something and whoever watches.
#[derive(Clone)]
pub struct Excuses(Arc<Mutex<Inner>>);

struct Inner {
    active: Vec<String>,
    brief: Vec<String>,
    last: String,
    ended: Instant,
}

/// Why something may not move just now.
#[derive(Clone, Debug)]
pub struct Excuse {
    /// What is broken, or else was last.
    pub name: String,
    /// Whether it still is.
    pub is_active: bool,
    /// When that ended.
    pub ended: Instant,
    /// What stops the clock for a moment, without anything to recover from.
    pub brief: Option<String>,
}

impl Excuses {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Inner {
            active: Vec::new(),
            brief: Vec::new(),
            last: "the start".to_owned(),
            ended: Instant::now(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn begin(&self, name: &str) {
        self.lock().active.push(name.to_owned());
    }

    pub fn end(&self, name: &str) {
        let mut inner = self.lock();
        remove(&mut inner.active, name);
        name.clone_into(&mut inner.last);
        inner.ended = Instant::now();
    }

    pub fn begin_brief(&self, name: &str) {
        self.lock().brief.push(name.to_owned());
    }

    pub fn end_brief(&self, name: &str) {
        remove(&mut self.lock().brief, name);
    }

    pub fn current(&self) -> Excuse {
        let inner = self.lock();
        let name = inner.active.last().unwrap_or(&inner.last).clone();
        Excuse { name, is_active: !inner.active.is_empty(), ended: inner.ended, brief: inner.brief.last().cloned() }
    }
}

fn remove(names: &mut Vec<String>, name: &str) {
    if let Some(place) = names.iter().position(|it| it == name) {
        names.remove(place);
    }
}
