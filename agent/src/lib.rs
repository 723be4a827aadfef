//! The bedside agent.
