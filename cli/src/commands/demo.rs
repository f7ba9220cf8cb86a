//! `hamal demo`: kill, recover, compare, and show it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use hamal_storage::{OsStorage, Storage};
use serde_json::json;

use crate::demo::campaign::{Campaign, Plan};
use crate::demo::image::Image;
use crate::demo::outage::{Damage, Scene};
use crate::demo::report::{Totals, opening, round_lines, round_summary};
use crate::demo::setup::Settings;
use crate::failure::{Failure, Result, answer};
use crate::session::{Session, must_be_free};
use crate::text;

/// Most workers: each has its share of the characters.
const MAX_WORKERS: u64 = 64;

/// Arguments of `demo`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Loads the Unicode character database (34,924 rows) and 1,000 accounts. A child process then changes characters and moves money \
between accounts, several threads at once, and says when each transaction is committed. It is killed with SIGKILL at a random moment; \
often the recovery that follows is killed, too. Then the database is opened, and every row of it is compared with what the child had said: \
what was acknowledged must be there, what was in doubt must be there wholly or not at all, and the balances must add up.

Exit status 1 if anything was not as it must be; the database is then kept.

Examples:
  hamal demo
  hamal demo --rounds 200 --kill-within 500ms --quiet
  hamal demo --partitions                                   # a file is lost while the others serve
  hamal demo --dir crashed.hamal --save-image image.hamal   # then: hamal recover image.hamal --dry-run")]
pub(crate) struct DemoArgs {
    /// Rounds of work, kill and recovery
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Kill at a random moment within this time
    #[arg(long, value_name = "TIME", default_value = "4s", value_parser = text::parse_duration)]
    kill_within: Duration,
    /// Threads that change the database
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=MAX_WORKERS))]
    workers: u64,
    /// Seed of the work [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Directory for the database; it must be missing or empty, and is kept [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keep the temporary database
    #[arg(long)]
    keep: bool,
    /// Copy the crashed database here before it is recovered; the last copy stays. The directory must be missing or empty
    #[arg(long, value_name = "DIR")]
    save_image: Option<PathBuf>,
    /// One line a round
    #[arg(long, short)]
    quiet: bool,
    /// Instead of kills: one of eight partitions loses its file, or what is in it, closed and running; the others serve; it is repaired
    #[arg(long, conflicts_with_all = ["rounds", "kill_within", "workers", "save_image", "quiet"])]
    partitions: bool,
}

pub(crate) fn run(args: &DemoArgs, session: &mut Session) -> Result<()> {
    let seed = args.seed.unwrap_or_else(|| OsStorage::new(".").random_u64() >> 32);
    let mut home = Home::choose(args)?;
    if args.partitions {
        if args.keep {
            home.keep();
        }
        return run_outages(seed, &mut home, session);
    }
    let image = args.save_image.as_ref().map(|image| Image::choose(image, &home.directory)).transpose()?;
    if args.keep {
        home.keep();
    }
    let plan = Plan {
        directory: home.directory.clone(),
        seed,
        workers: usize::try_from(args.workers).unwrap_or(1),
        settings: Settings { cache_bytes: session.cache_bytes.unwrap_or(4 << 20) },
        kill_within: args.kill_within,
        image,
    };
    let result = rounds(args, plan, session);
    // What went wrong is worth looking at.
    if result.is_err() && !matches!(result, Err(Failure::ReaderGone)) {
        home.keep();
    }
    let said = match home.kept() {
        Some(kept) if !session.out.is_json() => {
            session.out.line(format!("The database is in {}", kept.display()))
        }
        _ => Ok(()),
    };
    result.and(said)
}

fn rounds(args: &DemoArgs, plan: Plan, session: &mut Session) -> Result<()> {
    let mut totals = Totals::default();
    let said = tell_rounds(args, plan, session, &mut totals);
    answer(said, totals.is_right())
}

fn tell_rounds(args: &DemoArgs, plan: Plan, session: &mut Session, totals: &mut Totals) -> Result<()> {
    let started = Instant::now();
    let (seed, workers) = (plan.seed, plan.workers);
    let mut campaign = Campaign::start(plan)?;
    let about = opening(campaign.loaded, started.elapsed(), seed, workers);
    if session.out.is_json() {
        session.out.json(&about.json)?;
    } else {
        session.out.line(about.line)?;
    }
    for number in 1..=args.rounds {
        let round =
            campaign.round().map_err(|failure| failure.context(format!("seed {seed}, round {number}")))?;
        totals.add(&round);
        if session.out.is_json() {
            session.out.json(&round.to_json(number))?;
        } else if args.quiet && round.is_right() {
            session.out.line(round_summary(&round, number, args.rounds))?;
        } else {
            session.out.line("")?;
            for line in round_lines(&round, number, args.rounds) {
                session.out.line(line)?;
            }
        }
        session.out.flush()?;
        if !round.is_right() {
            break;
        }
    }
    if session.out.is_json() {
        return session.out.json(&totals.to_json(seed, started.elapsed()));
    }
    session.out.line("")?;
    totals.lines(seed, started.elapsed()).into_iter().try_for_each(|line| session.out.line(line))
}

/// Each damage, closed and running.
fn run_outages(seed: u64, home: &mut Home, session: &mut Session) -> Result<()> {
    let mut is_right = true;
    let result = outages(seed, &home.directory, session, &mut is_right);
    if (result.is_err() && !matches!(result, Err(Failure::ReaderGone))) || !is_right {
        home.keep();
    }
    let said = match home.kept() {
        Some(kept) if !session.out.is_json() => {
            session.out.line(format!("The database is in {}", kept.display()))
        }
        _ => Ok(()),
    };
    answer(result.and(said), is_right)
}

fn outages(seed: u64, directory: &Path, session: &mut Session, is_right: &mut bool) -> Result<()> {
    let started = Instant::now();
    let vault = directory.with_extension("vault");
    must_be_free(&vault)?;
    let mut scene = Scene::make(directory, &vault, session.cache_bytes.unwrap_or(4 << 20), seed)?;
    if !session.out.is_json() {
        let what = "a table of eight partitions, backed up, its log archived; a reader and a writer for each";
        session.out.line(format!("Made {what} (seed {seed})"))?;
    }
    let rounds: Vec<(Damage, bool)> =
        [false, true].into_iter().flat_map(|running| Damage::ALL.map(|damage| (damage, running))).collect();
    let (of, mut reads, mut writes) = (rounds.len() as u64, 0, 0);
    for (number, (damage, running)) in (1..).zip(rounds) {
        let outage = scene.round(damage, running).map_err(|failure| {
            *is_right = false;
            failure.context(format!("seed {seed}, round {number}"))
        })?;
        *is_right &= outage.is_right();
        reads += outage.reads;
        writes += outage.writes;
        if session.out.is_json() {
            session.out.json(&outage.to_json(number))?;
        } else {
            session.out.line("")?;
            outage.lines(number, of).into_iter().try_for_each(|line| session.out.line(line))?;
        }
        session.out.flush()?;
    }
    let elapsed = started.elapsed();
    if session.out.is_json() {
        return session.out.json(&json!({
            "type": "end",
            "right": *is_right,
            "rounds": of,
            "others_reads": reads,
            "others_writes": writes,
            "elapsed_ms": text::millis(elapsed),
            "seed": seed,
        }));
    }
    let verdict = if *is_right {
        format!("PASSED: {of} outages of one partition, each repaired to the last acknowledged commit.")
    } else {
        format!("FAILED (seed {seed}).")
    };
    session.out.line("")?;
    session.out.line(verdict)?;
    let (reads, writes) = (text::count(reads, "read"), text::count(writes, "commit"));
    session.out.line(format!(
        "  the others served {reads} and {writes} during the outages; {}",
        text::duration(elapsed)
    ))
}

/// Where the database lives, and whether it stays.
struct Home {
    directory: PathBuf,
    temporary: Option<tempfile::TempDir>,
    kept: bool,
}

impl Home {
    fn choose(args: &DemoArgs) -> Result<Home> {
        if let Some(directory) = &args.dir {
            must_be_free(directory)?;
            return Ok(Home { directory: directory.clone(), temporary: None, kept: true });
        }
        let temporary = tempfile::Builder::new()
            .prefix("hamal-demo-")
            .tempdir()
            .map_err(|error| Failure::unusable(format!("cannot make a temporary directory: {error}")))?;
        Ok(Home { directory: temporary.path().join("demo.hamal"), temporary: Some(temporary), kept: false })
    }

    fn keep(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            let _ = temporary.keep();
        }
        self.kept = true;
    }

    fn kept(&self) -> Option<&PathBuf> {
        self.kept.then_some(&self.directory)
    }
}
