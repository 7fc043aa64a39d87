//! The addresses of an upstream server's routes.

/// Where a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// Below the base address, beside `completions`.
    Api(&'static str),
    /// Below the server's root: the base address without its `/v1`.
    Root(&'static str),
}
