//! Answers in gzip, where the configuration allows it and the client takes it. Files of the pages are packed by
//! `pages` in any case.

use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};

/// Shorter answers are sent as they are: the frame of gzip would outweigh what it saves.
const SHORTEST: u64 = 1024;

/// Event streams are left out because a reader waits for each event, pictures and fonts because they are compressed.
pub fn layer() -> CompressionLayer<impl Predicate> {
    let worth_it = SizeAbove::new(SHORTEST)
        .and(NotForContentType::SSE)
        .and(NotForContentType::IMAGES)
        .and(NotForContentType::const_new("font/"));
    CompressionLayer::new().compress_when(worth_it)
}
