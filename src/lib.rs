//! shoal
pub mod model;
