//! Running a transaction again until it goes through.

use std::fmt;
use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

use hamal_storage::Storage;

use crate::{Database, Error, Result, Transaction, TransactionOptions};

/// An attempt that failed and will be made again: what [`RetryOptions::on_retry`] is told.
#[derive(Debug)]
#[non_exhaustive]
pub struct Retry<'e> {
    /// Attempts made so far, at least 1.
    pub attempt: u32,
    /// Why the last one failed.
    pub error: &'e Error,
    /// How long until the next one.
    pub pause: Duration,
}

/// Who hears of retries.
type Hook<'h> = &'h mut dyn FnMut(&Retry<'_>) -> ControlFlow<()>;

/// How [`Database::transact_with`] tries again.
pub struct RetryOptions<'h> {
    attempts: u32,
    first_pause: Duration,
    longest_pause: Duration,
    on_retry: Option<Hook<'h>>,
}

impl Default for RetryOptions<'_> {
    fn default() -> Self {
        RetryOptions {
            attempts: 32,
            first_pause: Duration::from_micros(50),
            longest_pause: Duration::from_millis(10),
            on_retry: None,
        }
    }
}

impl fmt::Debug for RetryOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryOptions")
            .field("attempts", &self.attempts)
            .field("first_pause", &self.first_pause)
            .field("longest_pause", &self.longest_pause)
            .finish_non_exhaustive()
    }
}

impl<'h> RetryOptions<'h> {
    /// The defaults.
    pub fn new() -> Self {
        RetryOptions::default()
    }

    /// Most attempts, the first included. Default 32; 0 counts as 1.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Longest pause before the second attempt; it doubles from attempt to attempt, and a random part of it is taken. Default 50 us.
    #[must_use]
    pub fn first_pause(mut self, pause: Duration) -> Self {
        self.first_pause = pause;
        self
    }

    /// Longest pause between any two attempts. Default 10 ms.
    #[must_use]
    pub fn longest_pause(mut self, pause: Duration) -> Self {
        self.longest_pause = pause;
        self
    }

    /// Hears of every attempt that is going to be made again; `Break` gives the last one's error to the caller instead.
    #[must_use]
    pub fn on_retry(mut self, hook: &'h mut dyn FnMut(&Retry<'_>) -> ControlFlow<()>) -> Self {
        self.on_retry = Some(hook);
        self
    }

    /// A random part of the pause that is due after this many attempts.
    fn pause(&self, attempt: u32, storage: &dyn Storage) -> Duration {
        let doubled = self.first_pause.saturating_mul(1_u32.checked_shl(attempt - 1).unwrap_or(u32::MAX));
        let most = doubled.min(self.longest_pause).as_nanos().min(u64::MAX.into()) as u64;
        Duration::from_nanos(storage.random_u64() % most.saturating_add(1).max(1))
    }
}

impl Database {
    /// As [`Database::transact`], with other options. An attempt that is made again keeps the age of the first one, so that in a
    /// deadlock it wins in the end. The error of the last attempt says how many there were.
    ///
    /// ```
    /// # fn main() -> hamal::Result<()> {
    /// use std::ops::ControlFlow;
    /// use hamal::{Database, Isolation, RetryOptions, TableDef, TransactionOptions};
    ///
    /// const ACCOUNTS: TableDef<&str, u64> = TableDef::new("accounts");
    ///
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let db = Database::open(directory.path().join("bank.hamal"))?;
    /// let mut retries = 0;
    /// let mut count = |_: &hamal::Retry<'_>| {
    ///     retries += 1;
    ///     ControlFlow::Continue(())
    /// };
    /// db.transact_with(
    ///     TransactionOptions::new().isolation(Isolation::Serializable),
    ///     RetryOptions::new().attempts(100).on_retry(&mut count),
    ///     |tx| tx.open_table(ACCOUNTS)?.put("alice", 100),
    /// )?;
    /// assert_eq!(retries, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn transact_with<T>(
        &self,
        options: TransactionOptions,
        mut retries: RetryOptions<'_>,
        mut work: impl FnMut(&Transaction) -> Result<T>,
    ) -> Result<T> {
        let mut age = None;
        let mut attempt = 1;
        loop {
            let result = Transaction::begin(self.own_handle(), options, age).and_then(|tx| {
                age = Some(tx.age());
                let value = work(&tx)?;
                tx.commit()?;
                Ok(value)
            });
            let error = match result {
                Err(e) if e.is_retryable() => e,
                other => return other,
            };
            if attempt >= retries.attempts {
                return Err(error.context(format_args!("given up after {attempt} attempts")));
            }
            let storage = &*self.handle.engine.storage;
            let pause = retries.pause(attempt, storage);
            let retry = Retry { attempt, error: &error, pause };
            if retries.on_retry.as_mut().is_some_and(|hook| hook(&retry).is_break()) {
                return Err(error.context(format_args!("given up by the caller after {attempt} attempts")));
            }
            tracing::debug!(attempt, %error, ?pause, "a transaction is tried again");
            match storage.scheduler() {
                Some(scheduler) => scheduler.pause("before another attempt"),
                None => thread::sleep(pause),
            }
            attempt += 1;
        }
    }

    /// Runs `work` in a transaction and commits it; runs it again, on a new transaction, when it or the commit returns a
    /// retryable error, up to 32 times, with pauses that grow. Any other error, and a panic, rolls back.
    pub fn transact<T>(&self, work: impl FnMut(&Transaction) -> Result<T>) -> Result<T> {
        self.transact_with(TransactionOptions::new(), RetryOptions::new(), work)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hamal_storage::sim::SimStorage;

    use super::*;
    use crate::{ErrorKind, Maintenance, Options};

    fn open() -> Database {
        Options::new().maintenance(Maintenance::Manual).open_on(Arc::new(SimStorage::new(1))).unwrap()
    }

    fn refused() -> Error {
        Error::new(ErrorKind::Conflict, "not yet")
    }

    #[test]
    fn a_conflict_is_tried_again_with_the_age_of_the_first_attempt() {
        let db = open();
        let (mut ages, mut told) = (Vec::new(), Vec::new());
        let mut hook = |retry: &Retry<'_>| {
            told.push((retry.attempt, retry.error.kind()));
            ControlFlow::Continue(())
        };
        let options = RetryOptions::new().first_pause(Duration::ZERO).on_retry(&mut hook);
        db.transact_with(TransactionOptions::new(), options, |tx| {
            ages.push((tx.id(), tx.age()));
            if ages.len() < 4 { Err(refused()) } else { Ok(()) }
        })
        .unwrap();
        assert!(ages.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 == pair[1].1), "{ages:?}");
        assert_eq!(told, [1, 2, 3].map(|attempt| (attempt, ErrorKind::Conflict)));
    }

    #[test]
    fn attempts_end_with_their_number_with_a_break_and_with_another_error() {
        let db = open();
        let run = |options: RetryOptions<'_>, kind: ErrorKind| {
            let mut runs = 0;
            let error = db
                .transact_with(TransactionOptions::new(), options, |_| -> Result<()> {
                    runs += 1;
                    Err(Error::new(kind, "no"))
                })
                .unwrap_err();
            (runs, error.to_string())
        };
        let options = || RetryOptions::new().first_pause(Duration::ZERO);
        assert_eq!(
            run(options().attempts(3), ErrorKind::Conflict),
            (3, "given up after 3 attempts: no".into())
        );
        assert_eq!(run(options().attempts(0), ErrorKind::Conflict).0, 1);
        assert_eq!(run(options(), ErrorKind::NotFound), (1, "no".into()));
        let mut stop = |_: &Retry<'_>| ControlFlow::Break(());
        assert_eq!(run(options().on_retry(&mut stop), ErrorKind::Conflict).0, 1);
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let storage = SimStorage::new(2);
        let options = RetryOptions::new();
        for attempt in [1, 2, 9, 31, 32, 33, 1000] {
            let most = Duration::from_micros(50 << (attempt - 1).min(20)).min(Duration::from_millis(10));
            let longest = (0..200).map(|_| options.pause(attempt, &storage)).max().unwrap();
            assert!(longest <= most && longest > most / 2, "attempt {attempt}: {longest:?} of {most:?}");
        }
    }
}
