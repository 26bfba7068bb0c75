//! `shoal secret`: a new cluster secret.

use super::{Failure, output};
use crate::security::Secret;

pub(super) async fn run() -> Result<(), Failure> {
    output::line(&Secret::generate(&mut rand::rng()).to_text()).await
}
