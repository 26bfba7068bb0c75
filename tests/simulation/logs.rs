//! The logs of the nodes, for people who replay one seed.

use crate::run::FORM_MS;

/// Shows the logs of the nodes, with simulated times; `SHOAL_LOG` filters them.
pub(crate) fn show() {
    struct Simulated;
    impl tracing_subscriber::fmt::time::FormatTime for Simulated {
        fn format_time(&self, out: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
            let elapsed = turmoil::sim_elapsed().unwrap_or_default().as_secs_f64();
            write!(out, "{:8.3}", elapsed - FORM_MS as f64 / 1000.0)
        }
    }
    let filter = std::env::var("SHOAL_LOG").unwrap_or_else(|_| "warn,shoal=debug".into());
    let logs = tracing_subscriber::fmt().with_timer(Simulated).with_env_filter(filter).with_ansi(false);
    // Fails when a test before this one has done it.
    let _ = logs.with_writer(std::io::stderr).try_init();
}
