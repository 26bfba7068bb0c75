//! Writes what each target starts from: `corpus FOLDER`.

use std::fs;
use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let folder: PathBuf = std::env::args_os().nth(1).expect("a folder").into();
    for target in shoal::fuzzing::TARGETS {
        let own = folder.join(target.name);
        fs::create_dir_all(&own)?;
        for (index, bytes) in (target.corpus)().iter().enumerate() {
            fs::write(own.join(format!("start-{index}")), bytes)?;
        }
    }
    Ok(())
}
