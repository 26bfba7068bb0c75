//! One round of load by wrk, and what it cost the processes under it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::common::{Result, cpu_seconds};
use super::{Subject, VALUE_BYTES};

pub(crate) const CONNECTIONS: usize = 64;

/// One round of one subject.
pub(crate) struct Round {
    pub(crate) cpu_us: f64,
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// The load generator.
pub(crate) struct Load {
    seconds: u32,
    script: PathBuf,
}

impl Load {
    pub(crate) fn new(seconds: u32) -> Result<Load> {
        if Command::new("wrk").arg("-v").output().is_err() {
            return Err("wrk is not on PATH; install it with: apt-get install wrk".into());
        }
        let script = Path::new(env!("CARGO_TARGET_TMPDIR")).join("load.lua");
        fs::write(&script, script_text())?;
        Ok(Load { seconds, script })
    }

    pub(crate) fn run(&self, subject: &Subject) -> Result<Round> {
        let before = cpu_seconds(&subject.pids)?;
        let output = Command::new("wrk")
            .args(["--threads", "1", "--connections", &CONNECTIONS.to_string()])
            .args(["--duration", &self.seconds.to_string(), "--script"])
            .arg(&self.script)
            .args([&subject.url, "--", subject.method])
            .output()?;
        let spent = cpu_seconds(&subject.pids)? - before;
        let text = String::from_utf8(output.stdout)?;
        let line = text.lines().find_map(|line| line.strip_prefix("measured "));
        let line = line.ok_or_else(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("wrk did not measure {}: {}, {text}{said}", subject.name, output.status)
        })?;
        let numbers: Vec<f64> = line.split(' ').map(str::parse).collect::<std::result::Result<_, _>>()?;
        let [requests, duration_us, p50_us, p99_us, errors] = numbers[..] else {
            return Err(format!("wrk said {line:?}").into());
        };
        if requests == 0.0 || errors > 0.0 {
            return Err(format!("{}: {errors} of {requests} requests failed", subject.name).into());
        }
        let cpu_us = spent * 1e6 / requests;
        Ok(Round { cpu_us, per_second: requests / (duration_us / 1e6), p50_us, p99_us })
    }
}

/// Requests are made up once, not by calling Lua for each: a script without `request` costs wrk nothing.
fn script_text() -> String {
    format!(
        r#"
function init(args)
    wrk.method = args[1]
    if args[1] == "PUT" then
        wrk.body = '{{"value":"' .. string.rep("v", {VALUE_BYTES}) .. '"}}'
        wrk.headers["Content-Type"] = "application/json"
    end
    local made = wrk.format()
    wrk.request = function() return made end
end

function done(summary, latency, requests)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format("measured %d %d %d %d %d\n", summary.requests, summary.duration,
        latency:percentile(50), latency:percentile(99), failed))
end
"#
    )
}
