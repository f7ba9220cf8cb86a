//! Makes the small corpora that the fuzz targets start from: `cargo run -p hamal-fuzz --bin corpus` fills `fuzz/corpus/`.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use hamal_fuzz::targets::{log_corpus, operations_corpus, page_corpus};

/// Makes the corpora that the fuzz targets start from.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Where to put them, one directory per target
    #[arg(default_value = "fuzz/corpus")]
    directory: PathBuf,
}

fn main() -> ExitCode {
    match make(&Arguments::parse().directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn make(directory: &std::path::Path) -> io::Result<()> {
    let corpora =
        [("log_bytes", log_corpus()), ("page_bytes", page_corpus()), ("operations", operations_corpus())];
    for (target, inputs) in corpora {
        let directory = directory.join(target);
        fs::create_dir_all(&directory)?;
        for (number, input) in inputs.iter().enumerate() {
            fs::write(directory.join(format!("seed-{number:03}")), input)?;
        }
        println!("{}: {} inputs", directory.display(), inputs.len());
    }
    Ok(())
}
