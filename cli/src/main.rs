//! `hamal`: explore a Hamal database from the command line.
//!
//! Owns the command line; what a command does is in [`commands`], one module each.

#![forbid(unsafe_code)]

mod codec;
mod commands;
mod demo;
mod failure;
mod formats;
mod moment;
mod output;
mod picture;
mod session;
mod takeback;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::commands::reshape::Reshape;
use crate::failure::{Failure, Result, Status, one_line};
use crate::output::{Output, Style};
use crate::session::Session;

/// Explore a Hamal database.
///
/// Every command takes the database directory first. A database that was not closed is recovered when a command opens it.
#[derive(Debug, Parser)]
#[command(
    name = "hamal",
    version,
    max_term_width = 100,
    after_long_help = "\
Keys and values that are no text are shown as \\xNN, and in JSON as hexadecimal (key_hex, value_hex).

Exit status:
  0  done
  1  the answer is no: the key is not there, check or scrub found damage, the demo failed
  2  bad input: arguments, or a file to load; nothing has changed
  3  the database cannot be used now: missing, locked, disk full, I/O error
  4  the database is damaged"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print JSON: one document, or one a line
    #[arg(long, global = true)]
    json: bool,
    /// Memory for pages, for instance 64M [default: 256M; demo: 4M]
    #[arg(long, global = true, value_name = "BYTES", value_parser = text::parse_bytes)]
    cache: Option<u64>,
    /// Archive the log of the database to this target, as `hamal archive` does
    #[arg(long, global = true, value_name = "TARGET")]
    archive: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load rows from a CSV, TSV, JSON Lines or raw file
    Load(commands::load::LoadArgs),
    /// Write a table as a file that `load` reads
    Dump(commands::dump::DumpArgs),
    /// Print the value of a key
    Get(commands::get::GetArgs),
    /// Write a key and its value
    Put(commands::put::PutArgs),
    /// Remove keys
    Del(commands::del::DelArgs),
    /// Print rows in key order
    Scan(commands::scan::ScanArgs),
    /// List the tables
    Tables(commands::tables::TablesArgs),
    /// Make a table, cut into range partitions where you say
    Create(commands::create::CreateArgs),
    /// List the range partitions
    Partitions(commands::partitions::PartitionsArgs),
    /// Split a range partition in two
    #[command(after_long_help = commands::reshape::SPLIT_HELP)]
    Split(commands::reshape::ReshapeArgs),
    /// Merge a range partition into the one before it
    #[command(after_long_help = commands::reshape::MERGE_HELP)]
    Merge(commands::reshape::ReshapeArgs),
    /// Rename a table
    Rename(commands::rename::RenameArgs),
    /// Drop a table and its rows
    Drop(commands::drop_table::DropArgs),
    /// Print the database's numbers
    Stat(commands::stat::StatArgs),
    /// Verify every page
    Check(commands::check::CheckArgs),
    /// Look at every page on the disk, and rebuild the bad ones
    Scrub(commands::scrub::ScrubArgs),
    /// Print the records of the log
    Log(commands::log::LogArgs),
    /// Print one page, decoded
    Page(commands::page::PageArgs),
    /// Recover a crashed database, or show what that would do
    Recover(commands::recover::RecoverArgs),
    /// Copy a database to a target, while nothing else has it open
    Backup(commands::backup::BackupArgs),
    /// List or verify the backups in a target
    Backups(commands::backup::BackupsArgs),
    /// Copy the log to a target, for restoring to any moment
    Archive(commands::backup::ArchiveArgs),
    /// Restore a database from a target, as of any moment
    Restore(commands::restore::RestoreArgs),
    /// Bring quarantined partitions back
    Repair(commands::repair::RepairArgs),
    /// Kill a database at random moments, recover it, check every row
    Demo(commands::demo::DemoArgs),
    /// The process that `demo` kills
    #[command(hide = true)]
    DemoWorker(demo::worker::WorkerArgs),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // A reader that has gone does not want help.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("hamal: {}", usage_line(&error));
            return ExitCode::from(Status::Input as u8);
        }
    };
    if let Command::DemoWorker(args) = &cli.command {
        return demo::worker::run(args);
    }
    let style = if cli.json { Style::Json } else { Style::Human };
    let mut session =
        Session { out: Output::stdout(style), cache_bytes: cli.cache, archive: cli.archive, heal_from: None };
    let result = run(&cli.command, &mut session);
    // What was printed before a failure is still true.
    let flushed = session.out.flush();
    match result.and(flushed) {
        Ok(()) | Err(Failure::ReaderGone) => ExitCode::SUCCESS,
        Err(Failure::Quiet(status)) => ExitCode::from(status as u8),
        Err(Failure::Message(status, message)) => {
            eprintln!("hamal: {}", one_line(&message));
            ExitCode::from(status as u8)
        }
    }
}

fn run(command: &Command, session: &mut Session) -> Result<()> {
    match command {
        Command::Load(args) => commands::load::run(args, session),
        Command::Dump(args) => commands::dump::run(args, session),
        Command::Get(args) => commands::get::run(args, session),
        Command::Put(args) => commands::put::run(args, session),
        Command::Del(args) => commands::del::run(args, session),
        Command::Scan(args) => commands::scan::run(args, session),
        Command::Tables(args) => commands::tables::run(args, session),
        Command::Create(args) => commands::create::run(args, session),
        Command::Partitions(args) => commands::partitions::run(args, session),
        Command::Split(args) => commands::reshape::run(args, Reshape::Split, session),
        Command::Merge(args) => commands::reshape::run(args, Reshape::Merge, session),
        Command::Rename(args) => commands::rename::run(args, session),
        Command::Drop(args) => commands::drop_table::run(args, session),
        Command::Stat(args) => commands::stat::run(args, session),
        Command::Check(args) => commands::check::run(args, session),
        Command::Scrub(args) => commands::scrub::run(args, session),
        Command::Log(args) => commands::log::run(args, session),
        Command::Page(args) => commands::page::run(args, session),
        Command::Recover(args) => commands::recover::run(args, session),
        Command::Backup(args) => commands::backup::run(args, session),
        Command::Backups(args) => commands::backup::run_list(args, session),
        Command::Archive(args) => commands::backup::run_archive(args, session),
        Command::Restore(args) => commands::restore::run(args, session),
        Command::Repair(args) => commands::repair::run(args, session),
        Command::Demo(args) => commands::demo::run(args, session),
        Command::DemoWorker(_) => Err(Failure::input("this command is for the demo itself")),
    }
}

/// clap's complaint, on one line.
fn usage_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let what = text.split("\n\nUsage:").next().unwrap_or(&text);
    let what = what.split("\n\nFor more").next().unwrap_or(what);
    let what = one_line(what.strip_prefix("error: ").unwrap_or(what)).replace(":; ", ": ");
    format!("{what} (see hamal --help)")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_wrong_command_line_is_one_line() {
        for line in [
            &["hamal"][..],
            &["hamal", "get"],
            &["hamal", "scan", "db", "-t", "t", "--limit", "x"],
            &["hamal", "nope"],
        ] {
            let error = Cli::try_parse_from(line).expect_err("wrong");
            if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
                continue;
            }
            let text = usage_line(&error);
            assert!(!text.contains('\n') && !text.starts_with("error"), "{text}");
        }
    }
}
