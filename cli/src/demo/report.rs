//! What the demo prints: rounds and the summary, for people and as JSON.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::campaign::Round;
use super::model::Model;
use crate::commands::load::Loaded;
use crate::picture;
use crate::text::{self, count, grouped};

/// The first thing said.
pub(crate) struct Opening {
    pub(crate) line: String,
    pub(crate) json: Json,
}

pub(crate) fn opening(loaded: Loaded, elapsed: Duration, seed: u64, workers: usize) -> Opening {
    Opening {
        line: format!(
            "Loaded {} of UnicodeData.txt and 1,000 accounts in {}; {} (seed {seed})",
            count(loaded.rows, "row"),
            text::duration(elapsed),
            count(workers as u64, "worker"),
        ),
        json: json!({
            "type": "start",
            "rows": loaded.rows,
            "elapsed_ms": text::millis(elapsed),
            "workers": workers,
            "seed": seed,
        }),
    }
}

impl Round {
    /// Whether everything was as it must be.
    pub(crate) fn is_right(&self) -> bool {
        self.verdict.wrong_count == 0
    }

    pub(crate) fn to_json(&self, number: u64) -> Json {
        let told = &self.told;
        json!({
            "type": "round",
            "round": number,
            "right": self.is_right(),
            "killed_after_ms": text::millis(self.worked),
            "acknowledged": told.acknowledged,
            "acknowledged_changes": told.changes,
            "rolled_back": told.rollbacks,
            "rolled_back_changes": told.rolled_back_changes,
            "refused": told.refused,
            "in_doubt_present": self.verdict.settled.present,
            "in_doubt_absent": self.verdict.settled.absent,
            "messages_cut_short": self.cut_short,
            "snapshots_audited": told.audits,
            "pages_stolen": told.pages_stolen,
            "checkpoints": told.checkpoints,
            "structure_changes": told.structure_changes,
            "evictions": told.evictions,
            "recoveries_killed": self.interrupted,
            "open_ms": text::millis(self.open_elapsed),
            "recovery": picture::to_json(&self.recovery),
            "check_ms": text::millis(self.check_elapsed),
            "rows_compared": self.verdict.rows,
            "balance": i64::try_from(self.verdict.balance).ok(),
            "balance_expected": i64::try_from(Model::total()).ok(),
            "pages_verified": self.verdict.pages,
            "wrong": self.verdict.wrong,
            "wrong_count": self.verdict.wrong_count,
        })
    }
}

/// A round in one line.
pub(crate) fn round_summary(round: &Round, number: u64, rounds: u64) -> String {
    let recovery = &round.recovery;
    let took = recovery.analysis.elapsed + recovery.redo.elapsed + recovery.undo.elapsed;
    format!(
        "round {number} of {rounds}: killed after {}, {} acknowledged, {} in doubt; recovered in {}: {} redone, {} undone; right",
        text::duration(round.worked),
        grouped(round.told.acknowledged),
        round.verdict.settled.present + round.verdict.settled.absent,
        text::duration(took),
        grouped(recovery.redo.applied),
        grouped(recovery.undo.applied),
    )
}

/// A round in full.
pub(crate) fn round_lines(round: &Round, number: u64, rounds: u64) -> Vec<String> {
    let told = &round.told;
    let settled = &round.verdict.settled;
    let mut lines = vec![
        format!(
            "Round {number} of {rounds}: SIGKILL after {}. {} had been acknowledged ({}), {} rolled back, {} in doubt.",
            text::duration(round.worked),
            count(told.acknowledged, "transaction"),
            count(told.changes, "change"),
            grouped(told.rollbacks),
            settled.present + settled.absent,
        ),
        format!(
            "  {} beside them added up; {} of unfinished transactions had been written to the files; {}.",
            count(told.audits, "snapshot"),
            count(told.pages_stolen, "page"),
            count(told.checkpoints, "checkpoint"),
        ),
    ];
    if round.interrupted > 0 {
        lines.push(format!(
            "  {} killed on the way; this is the one that was let finish:",
            match round.interrupted {
                1 => "One recovery was".to_owned(),
                n => format!("{n} recoveries were"),
            }
        ));
    }
    lines.extend(picture::lines(&round.recovery));
    if round.is_right() {
        lines.push(format!(
            "  RIGHT: every acknowledged transaction is there; in doubt: {} wholly there, {} wholly absent;",
            settled.present, settled.absent
        ));
        lines.push(format!(
            "         {} equal the model, balances add up to {}, {} verified, in {}.",
            count(round.verdict.rows, "row"),
            grouped(u64::try_from(round.verdict.balance).unwrap_or(0)),
            count(round.verdict.pages, "page"),
            text::duration(round.check_elapsed),
        ));
    } else {
        lines.push(format!("  WRONG: {}", count(round.verdict.wrong_count, "difference")));
        lines.extend(round.verdict.wrong.iter().map(|what| format!("    {what}")));
    }
    lines
}

/// All rounds together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    rounds: u64,
    wrong_rounds: u64,
    acknowledged: u64,
    rolled_back: u64,
    present: u64,
    absent: u64,
    recoveries_killed: u64,
    torn_tails: u64,
    losers: u64,
    redone: u64,
    undone: u64,
    stolen: u64,
    audits: u64,
    recovery: Duration,
    longest_recovery: Duration,
}

impl Totals {
    pub(crate) fn add(&mut self, round: &Round) {
        let recovery = &round.recovery;
        let took = recovery.analysis.elapsed + recovery.redo.elapsed + recovery.undo.elapsed;
        self.rounds += 1;
        self.wrong_rounds += u64::from(!round.is_right());
        self.acknowledged += round.told.acknowledged;
        self.rolled_back += round.told.rollbacks;
        self.present += round.verdict.settled.present;
        self.absent += round.verdict.settled.absent;
        self.recoveries_killed += round.interrupted;
        self.torn_tails += u64::from(recovery.torn_tail);
        self.losers += recovery.losers;
        self.redone += recovery.redo.applied;
        self.undone += recovery.undo.applied;
        self.stolen += round.told.pages_stolen;
        self.audits += round.told.audits;
        self.recovery += took;
        self.longest_recovery = self.longest_recovery.max(took);
    }

    pub(crate) fn is_right(&self) -> bool {
        self.wrong_rounds == 0
    }

    pub(crate) fn lines(&self, seed: u64, elapsed: Duration) -> Vec<String> {
        let verdict = if self.is_right() {
            format!(
                "PASSED: {} of kill and recovery, nothing lost, nothing half done.",
                count(self.rounds, "round")
            )
        } else {
            format!("FAILED in round {} (seed {seed}).", self.rounds)
        };
        vec![
            verdict,
            format!(
                "  {} acknowledged, {} rolled back, {} in doubt ({} there, {} absent); {} audited",
                count(self.acknowledged, "transaction"),
                grouped(self.rolled_back),
                grouped(self.present + self.absent),
                grouped(self.present),
                grouped(self.absent),
                count(self.audits, "snapshot"),
            ),
            format!(
                "  {} redone, {} of {} undone, {} stolen, {} cut, {} killed",
                count(self.redone, "page change"),
                count(self.undone, "record"),
                count(self.losers, "loser"),
                count(self.stolen, "page"),
                count(self.torn_tails, "torn tail"),
                count(self.recoveries_killed, "recovery"),
            ),
            format!(
                "  {} in recovery, {} at most in one; {} in all",
                text::duration(self.recovery),
                text::duration(self.longest_recovery),
                text::duration(elapsed)
            ),
        ]
    }

    pub(crate) fn to_json(self, seed: u64, elapsed: Duration) -> Json {
        json!({
            "type": "summary",
            "right": self.is_right(),
            "seed": seed,
            "rounds": self.rounds,
            "acknowledged": self.acknowledged,
            "rolled_back": self.rolled_back,
            "in_doubt_present": self.present,
            "in_doubt_absent": self.absent,
            "snapshots_audited": self.audits,
            "redone": self.redone,
            "losers": self.losers,
            "undone": self.undone,
            "pages_stolen": self.stolen,
            "torn_tails": self.torn_tails,
            "recoveries_killed": self.recoveries_killed,
            "recovery_ms": text::millis(self.recovery),
            "longest_recovery_ms": text::millis(self.longest_recovery),
            "elapsed_ms": text::millis(elapsed),
        })
    }
}
